from PIL import Image

from pipeline.report.curves import draw_curves


def test_the_curves_of_a_training_are_a_picture(tmp_path):
    row = {"train_loss": 1.0, "validation_loss": 1.2, "validation_accuracy": 0.5}
    history = [{"epoch": epoch, **row} for epoch in (1, 2, 3)]
    draw_curves(history, "train", tmp_path / "plots" / "curves.png")
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 10
