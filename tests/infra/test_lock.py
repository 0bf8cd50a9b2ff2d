"""The lock gives everybody what was tested."""

import re
from collections import Counter

from pipeline.machine.workspace import SOURCE


def test_every_python_gets_the_same_version_of_a_package():
    packages = re.findall(r"^([\w.-]+)==", (SOURCE / "requirements.lock").read_text(encoding="utf-8"), re.M)
    assert len(packages) > 100
    assert [name for name, versions in Counter(packages).items() if versions > 1] == []
