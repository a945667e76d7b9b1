"""The figures: what is drawn where, what is refused, and that nothing global changes."""

import base64
import io

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat import v4
from PIL import Image

from plot_tools import pics_tools as pic
from plot_tools.clean_outputs import clean, with_palette


@pytest.fixture(autouse=True)
def nothing_global_changes():
    """No test may change a global setting, leave the figure of another one, or show anything."""
    before, show = dict(matplotlib.rcParams), plt.show
    plt.show = lambda *args, **kwargs: pytest.fail("plt.show() was called")
    yield
    plt.show = show
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def pictures(fig):
    """For each axis the drawn array, or None."""
    return [np.asarray(ax.images[0].get_array()) if ax.images else None for ax in fig.axes]


def test_as_in_the_original_tutorial():
    images = np.random.default_rng(0).random((20, 784))
    fig = pic.plot_image_grid(images, [28, 28], (2, 10))
    assert isinstance(fig, matplotlib.figure.Figure) and len(fig.axes) == 20
    for image, drawn in zip(images, pictures(fig), strict=True):
        assert np.allclose(drawn, image.reshape(28, 28))
    assert plt.fignum_exists(fig.number)


def test_order_is_by_rows_on_the_page():
    fig = pic.plot_image_grid(np.linspace(0, 1, 6)[:, None, None] * np.ones((6, 4, 4)), (4, 4), (2, 3))
    fig.canvas.draw()
    centres = [ax.get_position() for ax in fig.axes]
    assert centres[0].x0 < centres[1].x0 < centres[2].x0 and centres[0].y0 > centres[3].y0


def test_grey_values_are_fixed_not_stretched():
    fig = pic.plot_image_grid(np.full((1, 9), 0.5), (3, 3), (1, 1))
    assert fig.axes[0].images[0].get_clim() == (0, 1) and fig.axes[0].images[0].get_cmap().name == "gray"


@pytest.mark.parametrize("grid", [(1, 4), (4, 1), (2, 2)])
def test_one_row_one_column(grid):
    fig = pic.plot_image_grid(np.zeros((4, 6, 6)), (6, 6), grid, row_labels=range(grid[0]), col_labels=range(grid[1]))
    assert len(fig.axes) == 4


def test_one_image():
    assert len(pic.plot_image_grid(np.zeros((1, 784)), (28, 28), (1, 1)).axes) == 1


def test_rgb():
    image = np.random.default_rng(0).random((2, 5, 4, 3))
    drawn = pictures(pic.plot_image_grid(image, (5, 4, 3), (1, 2)))
    assert all(np.allclose(a, b) for a, b in zip(drawn, image, strict=True))


@pytest.mark.parametrize("shape", [(10, 30), (30, 10)])
def test_aspect_is_kept(shape):
    fig = pic.plot_image_grid(np.zeros((6, *shape)), shape, (2, 3))
    fig.canvas.draw()
    for ax in fig.axes:
        box = ax.get_window_extent()
        assert np.isclose(box.height / box.width, shape[0] / shape[1], rtol=0.02)


def test_fewer_images_than_cells_leaves_blanks():
    fig = pic.plot_image_grid(np.zeros((4, 9)), (3, 3), (2, 3))
    assert [drawn is None for drawn in pictures(fig)] == [False] * 4 + [True] * 2
    fig.canvas.draw()
    sizes = {tuple(np.round(ax.get_window_extent().size)) for ax in fig.axes}
    assert len(sizes) == 1


def test_labels():
    fig = pic.plot_image_grid(np.zeros((6, 9)), (3, 3), (2, 3), row_labels=("a", "b"), col_labels=(7, 8, 9))
    assert [ax.get_title() for ax in fig.axes] == ["7", "8", "9", "", "", ""]
    assert [ax.get_ylabel() for ax in fig.axes] == ["a", "", "", "b", "", ""]


@pytest.mark.parametrize(
    ("images", "shape", "grid", "words"),
    [
        (np.zeros((7, 9)), (3, 3), (2, 3), ["7 images", "6 cells"]),
        (np.zeros((2, 9)), (3, 4), (1, 2), ["12 values", r"(2, 9)"]),
        (np.zeros((0, 9)), (3, 3), (1, 2), ["non-empty", "(0, 9)"]),
        (np.zeros(9), (3, 3), (1, 1), ["(9,)"]),
        (np.zeros((1, 9)), (9,), (1, 1), ["(height, width)"]),
        (np.zeros((1, 18)), (3, 3, 2), (1, 1), ["(height, width, 3)"]),
        (np.zeros((1, 9)), (3, 3), (0, 1), ["grid_shape"]),
        (np.zeros((1, 9)), (3, 3), (1, 1, 1), ["grid_shape"]),
        (np.zeros((1, 9)), (3, 3), (1.5, 1), ["grid_shape"]),
    ],
)
def test_bad_input_says_what_was_expected(images, shape, grid, words):
    with pytest.raises(ValueError) as error:
        pic.plot_image_grid(images, shape, grid)
    assert all(word in str(error.value) for word in words)
    assert not plt.get_fignums()  # no half-made figure is left


def test_wrong_number_of_labels():
    with pytest.raises(ValueError, match="row_labels needs 1 labels, got 2"):
        pic.plot_image_grid(np.zeros((1, 9)), (3, 3), (1, 1), row_labels="ab")


def test_latent_map():
    rng, labels = np.random.default_rng(0), np.arange(50) % 5
    maps = [rng.normal(size=(50, 2)), rng.normal(size=(50, 2))]
    fig = pic.plot_latent_map(maps, labels, ["one", "two"], "a", "b")
    assert [ax.get_title() for ax in fig.axes] == ["one", "two"]
    assert sorted(text.get_text() for text in fig.axes[0].texts) == list("01234")
    assert sum(len(points.get_offsets()) for points in fig.axes[0].collections) == 50


@pytest.mark.parametrize("bad", [([np.zeros((4, 3))], ["a"]), ([np.zeros((3, 2))], ["a"]), ([np.zeros((4, 2))], ["a", "b"]), ([], [])])
def test_latent_map_refuses(bad):
    with pytest.raises(ValueError):
        pic.plot_latent_map(bad[0], np.zeros(4, int), bad[1])


def test_curves():
    history = {"recon": [3.0, 2.0, 1.0], "val_recon": [3.0, 2.5, 2.0], "kl_prior": [0.0, 1.0, 2.0]}
    fig = pic.plot_curves({"A": history, "B": {"recon": [1.0]}}, ("recon", "kl_prior"))
    assert [len(ax.lines) for ax in fig.axes] == [3, 1]
    styles = {line.get_label(): line.get_linestyle() for line in fig.axes[0].lines}
    assert styles == {"A, training": "-", "A, held-out": "--", "B, training": "-"}
    assert list(fig.axes[0].lines[0].get_xdata()) == [1, 2, 3]
    with pytest.raises(ValueError, match="kl_marginal"):
        pic.plot_curves({"A": history}, ("kl_marginal",))


def test_frontier():
    groups = {"A": [(1, 0.5, 0.1, 0.01, "x"), (2, 0.2, 0.1, 0.01, "y")], "B": [(1.5, 0.3, 0, 0, "z")]}
    fig = pic.plot_frontier(groups, "recon", "leak", chance=0.1, zoom=(0.1, 0.4))
    assert len(fig.axes) == 2 and fig.axes[1].get_ylim() == (0.1, 0.4)
    assert len(pic.plot_frontier(groups, "recon", "leak").axes) == 1
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["chance", "A", "B"]
    bars = pic.plot_frontier(groups, "x", "y", separate=["B"]).axes[0].containers
    assert [bar[0].get_linestyle() for bar in bars] == ["-", "None"]
    for bad in ({}, {"A": []}):
        with pytest.raises(ValueError, match="point"):
            pic.plot_frontier(bad, "x", "y")


def test_palette_keeps_rare_colours():
    picture = np.full((200, 200, 3), 255, "uint8")
    picture[::7] = np.arange(200)[:, None]  # many greys
    picture[100, 100], picture[50, 50] = (0, 114, 178), (0, 158, 115)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    png = with_palette(base64.b64encode(file.getvalue()).decode())
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), int)
    assert np.abs(again - picture).max() < 8


def test_clean_outputs(tmp_path):
    """Pictures keep their size and look, warnings go, prints are joined, and a second pass changes nothing."""
    fig, file = pic.plot_image_grid(np.random.default_rng(0).random((4, 64)), (8, 8), (2, 2)), io.BytesIO()
    fig.savefig(file)
    png = base64.b64encode(file.getvalue()).decode()
    outputs = [v4.new_output("stream", name=name, text=f"{name}\n") for name in ("stdout", "stderr", "stdout")]
    outputs.append(v4.new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}))
    warning = v4.new_output("stream", name="stdout", text="WARNING:tensorflow:5 out of the last 9 calls to <function f at 0x7f>\n")
    outputs.insert(2, warning)
    alone = v4.new_code_cell("2", outputs=[warning.copy()], execution_count=2)
    cells = [v4.new_markdown_cell("text"), v4.new_code_cell("1", outputs=outputs, execution_count=1), alone]
    path = tmp_path / "n.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    clean(path)
    once = path.read_text()
    clean(path)
    assert path.read_text() == once and len(list(tmp_path.iterdir())) == 1

    cleaned = nbformat.read(path, 4).cells[1]
    assert nbformat.read(path, 4).cells[2].outputs == []
    assert cleaned.execution_count == 1 and [o.get("text") for o in cleaned.outputs] == ["stdout\nstdout\n", None]
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("L"), float) for p in (png, cleaned.outputs[1].data["image/png"])
    )
    assert before.shape == after.shape and np.abs(before - after).max() < 12


def luminance(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    """Ratio of WCAG 2, from 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_figures_are_readable_in_light_and_dark(style):
    with plt.style.context(style):
        frontier = pic.plot_frontier({"a": [(1, 2, 0, 0, "p")]}, "x", "y", chance=1.5)
        ax = frontier.axes[0]
        (chance,) = [line for line in ax.lines if line.get_label() == "chance"]
        assert contrast(chance.get_color(), ax.get_facecolor()) > 7
        maps = pic.plot_latent_map([np.random.default_rng(0).normal(size=(20, 2))], np.arange(20) % 2, ["t"])
        for text in maps.axes[0].texts:
            assert contrast(text.get_color(), text.get_bbox_patch().get_facecolor()) > 7
        curves = pic.plot_curves({str(i): {"loss": [2, 1]} for i in range(7)}, ("loss",))
        assert all(contrast(line.get_color(), curves.axes[0].get_facecolor()) > 1.9 for line in curves.axes[0].lines)
        plt.close("all")


def test_eight_bit_images_are_drawn_as_they_are():
    fig = pic.plot_image_grid(np.full((1, 2, 2), 51, "uint8"), (2, 2), (1, 1))
    assert np.allclose(fig.axes[0].images[0].get_array(), 0.2)


def test_a_long_row_label_is_not_cut():
    label = "a rather long name of a model"
    fig = pic.plot_image_grid(np.zeros((1, 4)), (2, 2), (1, 1), row_labels=[label])
    fig.draw_without_rendering()
    box = fig.axes[0].yaxis.label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1


@pytest.mark.parametrize(
    ("images", "shape", "message"),
    [
        (np.zeros((2, 3, 4, 4)), (3, 4, 4), "channels last"),
        (np.zeros((2, 3, 4, 4)), (4, 4, 3), "channels last"),
        (np.full((2, 16), 200.0), (4, 4), r"lie in \[0, 1\]"),
        (np.full((2, 16), np.nan), (4, 4), "finite"),
        (np.zeros((2, 16)), 4, "image_shape"),
    ],
)
def test_images_that_cannot_be_drawn_are_refused(images, shape, message):
    before = plt.get_fignums()
    with pytest.raises(ValueError, match=message):
        pic.plot_image_grid(images, shape, (1, 2))
    with pytest.raises(ValueError, match="grid_shape"):
        pic.plot_image_grid(np.zeros((2, 16)), (4, 4), 2)
    assert plt.get_fignums() == before


def test_twenty_curves_can_be_told_apart():
    fig = pic.plot_curves({f"model {i}": {"loss": [2, 1]} for i in range(20)}, "loss")
    assert len({(line.get_color(), line.get_marker()) for line in fig.axes[0].lines}) == 20


def test_one_hot_labels_and_other_shapes_of_labels():
    points = np.random.default_rng(0).normal(size=(12, 2))
    fig = pic.plot_latent_map([points], np.eye(3)[np.arange(12) % 3], ["t"])
    assert [text.get_text() for text in fig.axes[0].texts] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="one-hot"):
        pic.plot_latent_map([points], points, ["t"])


@pytest.mark.parametrize("histories", [{}, [{"loss": [1]}]])
def test_curves_of_nothing_are_refused(histories):
    with pytest.raises(ValueError, match="histories must be a dict"):
        pic.plot_curves(histories, ("loss",))


def test_a_method_looks_the_same_in_every_figure():
    point = [(1, 2, 0, 0, "")]
    first = pic.plot_frontiers([{"groups": {"CVAE, beta": point, "mine": point}, "ylabel": "y"}] * 2, "x")
    second = pic.plot_frontier({"other": point, "mine": point, "CVAE, weight": point}, "x", "y")
    looks = [{c.get_label(): c.lines[0].get_color() for c in ax.containers} for ax in (*first.axes, *second.axes)]
    assert looks[0] == looks[1] and looks[0]["CVAE, beta"] == looks[2]["CVAE, weight"]
    assert len(set(looks[2].values())) == 3


def test_labels_lie_on_no_other_label():
    rng = np.random.default_rng(0)
    crowd = [(x, y, 0, 0, f"{i / 10}") for i, (x, y) in enumerate(rng.uniform(0, 1, size=(15, 2)))]
    fig = pic.plot_frontier({"a": crowd[:8], "b": crowd[8:]}, "x", "y", separate=("a", "b"))
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert len(boxes) == 15
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [(1, 2)]}])
def test_frontiers_refuse_what_they_cannot_draw(bad):
    with pytest.raises(ValueError, match="at least one"):
        pic.plot_frontiers([{"groups": bad, "ylabel": "y"}], "x")
    with pytest.raises(ValueError, match="low < high"):
        pic.plot_frontier({"a": [(1, 2, 0, 0, "")]}, "x", "y", zoom=(2, 1))
