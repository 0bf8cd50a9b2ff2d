"""What the tests' worker processes run, as ``workers:<function>``."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def each(job):
    """Run every function that the job names, with its own job."""
    for name, own in job.items():
        globals()[name](own)


def together(job):
    """Say who each process is, and leave the gradients of a shared step."""
    import torch
    from torch.nn import functional as F

    from pipeline.training.distributed import ranks

    torch.manual_seed(7 + ranks.rank())  # the copies shall become equal by being shared, not by the seed
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    shared = ranks.share(network, "ddp")
    images, labels = torch.tensor(job["images"]), torch.tensor(job["labels"])
    mine = slice(ranks.rank(), None, ranks.world())
    F.cross_entropy(shared(images[mine]), labels[mine]).backward()
    mean = torch.tensor([float(ranks.rank())])
    ranks.mean_([mean])
    found = {
        "rank": ranks.rank(),
        "world": ranks.world(),
        "main": ranks.is_main(),
        "threads": torch.get_num_threads(),
        "mean": mean.item(),
        "total": ranks.total(torch.tensor([1.0, ranks.rank()])).tolist(),
        "weights": [weight.tolist() for weight in network.parameters()],
        "gradients": [weight.grad.tolist() for weight in network.parameters()],
        "listening": _listening(),
    }
    (Path(job["out"]) / f"{ranks.rank()}.json").write_text(json.dumps(found))


def train(job):
    """Train as a stage does, once for each of ``trainings``, to its end or for ``epochs``; say what each loss learned."""
    import torch

    from pipeline.training.distributed import ranks
    from pipeline.training.job import TrainingJob
    from pipeline.training.loop import Training

    found = []
    for one in job["trainings"]:
        training = Training(TrainingJob.model_validate(one["job"]))
        training.resume()
        training.precompute_teacher()
        begun = {name: tensor.tolist() for name, tensor in training.criterion.state_dict().items()}
        for _ in range(one["epochs"] or training.fit.epochs - training.epoch):
            training.run_epoch()
        ended = {name: tensor.tolist() for name, tensor in training.criterion.state_dict().items()}
        if ranks.is_main() and training.epoch == training.fit.epochs:
            training.write()
        found.append({"begun": begun, "ended": ended})
        ranks.total(torch.zeros(1))  # the others may read what the main one has written
    (Path(job["out"]) / f"{ranks.rank()}.json").write_text(json.dumps(found))


def fail(job):
    """Raise what the job says."""
    from pipeline import errors

    raise {"settings": errors.SettingsError, "value": ValueError}[job["error"]](job["text"])


def sleep(job):
    """Say that it runs, then wait to be ended."""
    (Path(job["out"]) / f"pid-{os.getpid()}").touch()
    time.sleep(600)


def end_by_signal(job):
    os.kill(os.getpid(), signal.SIGKILL)


def _listening():
    """Addresses, other than loopback, at which this process or its parent accepts connections."""
    import psutil

    processes = (psutil.Process(), psutil.Process().parent())
    return [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in ("127.0.0.1", "::1")
    ]


if __name__ == "__main__":  # a stage of two processes that only wait, for tests that end it
    from pipeline.settings.training import Distributed
    from pipeline.training.distributed.launch import launch

    launch("workers:sleep", {"out": sys.argv[1]}, Distributed(nproc=2), Path(sys.argv[1]))
