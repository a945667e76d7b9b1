"""Figures for the chapters: image grids, latent maps, curves of loss terms, the leakage-distortion frontier.

Each function returns a matplotlib Figure and changes no global style. None of them calls `plt.show()`: in a notebook, write
`fig = plot_...(...)` and the figure appears once.
"""

import matplotlib.pyplot as plt
import numpy as np

# Okabe & Ito's colours, readable for the colour-blind; markers and line styles tell the same in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_image_grid(images, image_shape, grid_shape, row_labels=None, col_labels=None):
    """Draw images row by row in a grid.

    images: (N, ...) array, N >= 1, each image with as many values as image_shape. Greyscale runs from 0 (black) to 1 (white),
    RGB likewise; values outside are clipped. image_shape: (height, width) or (height, width, 3). grid_shape: (rows, columns);
    cells beyond N stay blank. row_labels, col_labels: one label for each row or column.
    Raises ValueError if there is no image, if the images don't fit the shape or the grid, or if labels are missing.
    """
    images, image_shape, (rows, columns) = np.asarray(images), tuple(image_shape), _grid(grid_shape)
    if len(image_shape) not in (2, 3) or image_shape[2:] not in ((), (3,)):
        raise ValueError(f"image_shape must be (height, width) or (height, width, 3), got {image_shape}")
    if images.ndim < 2 or images.size == 0 or images[0].size != np.prod(image_shape):
        raise ValueError(
            f"images must be a non-empty array (N, ...) with {np.prod(image_shape)} values an image for image_shape {image_shape}, "
            f"got an array of shape {images.shape}"
        )
    if len(images) > rows * columns:
        raise ValueError(f"{len(images)} images don't fit a grid of {rows} x {columns} = {rows * columns} cells")
    row_labels, col_labels = _labels("row_labels", row_labels, rows), _labels("col_labels", col_labels, columns)

    height, width = image_shape[:2]
    cell = 0.52 / max(height, width)  # the longer side of an image is about half an inch
    size = (columns * cell * width + 0.7 * bool(row_labels), rows * cell * height + 0.25 * bool(col_labels))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for index, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if index < len(images):
            picture = np.clip(images[index].reshape(image_shape).astype(float), 0, 1)
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        else:  # an empty axis of the same shape keeps the grid regular
            ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        if index < columns and col_labels:
            ax.set_title(col_labels[index], fontsize=10)
        if index % columns == 0 and row_labels:
            ax.set_ylabel(row_labels[index // columns], fontsize=10, rotation=0, ha="right", va="center")
    return fig


def plot_latent_map(maps, labels, titles, xlabel="", ylabel=""):
    """Scatter plots of two-dimensional codes, side by side, coloured and numbered by class.

    maps: list of (N, 2) arrays. labels: (N,) integers, shared by all maps. titles: one for each map.
    The number of each class stands at the median of its points, so the figure can be read without colours.
    Raises ValueError if a map is not (N, 2) with one label a point.
    """
    labels = np.asarray(labels)
    for points in maps:
        if np.ndim(points) != 2 or np.shape(points) != (len(labels), 2):
            raise ValueError(f"each map must have the shape ({len(labels)}, 2), one row a label; got {np.shape(points)}")
    if len(maps) == 0 or len(titles) != len(maps):
        raise ValueError(f"expected one title for each of at least one map, got {len(titles)} titles and {len(maps)} maps")
    fig, axes = plt.subplots(1, len(maps), figsize=(2.8 * len(maps), 3), squeeze=False, layout="constrained")
    classes = np.unique(labels)
    colours = plt.get_cmap("tab10")(np.arange(len(classes)) % 10)
    for ax, points, title in zip(axes[0], maps, titles, strict=True):
        for colour, name in zip(colours, classes, strict=True):
            ax.scatter(*np.asarray(points)[labels == name].T, s=4, color=colour, alpha=0.5, linewidths=0, rasterized=True)
        for colour, name in zip(colours, classes, strict=True):
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5}
            ax.text(*np.median(np.asarray(points)[labels == name], axis=0), str(name), fontsize=8, ha="center", va="center", bbox=box)
        ax.set(title=title, xlabel=xlabel, xticks=[], yticks=[])
    axes[0, 0].set_ylabel(ylabel)
    return fig


def plot_curves(histories, terms):
    """Loss terms against epochs: one panel for each term, one colour for each model, training solid, held-out dashed.

    histories: dict of name -> dict of lists, as `fit(...).history` returns it; held-out terms begin with "val_".
    terms: names of the terms to show. A model without a term is left out of that panel.
    Raises ValueError if no model has the term.
    """
    fig, axes = plt.subplots(1, len(terms), figsize=(2.8 * len(terms) + 0.4, 2.8), squeeze=False, layout="constrained")
    for ax, term in zip(axes[0], terms, strict=True):
        if not any(term in history for history in histories.values()):
            plt.close(fig)
            raise ValueError(f"no history has the term {term!r}; they have {sorted(set().union(*histories.values()))}")
        for index, (name, history) in enumerate(histories.items()):
            for key, style in ((term, "-"), (f"val_{term}", "--")):
                if key in history:
                    epochs = np.arange(1, len(history[key]) + 1)
                    label = f"{name}, {'held-out' if key != term else 'training'}"
                    mark = {"marker": MARKERS[index], "markevery": max(1, len(epochs) // 8), "markersize": 4}
                    ax.plot(epochs, history[key], style, color=COLOURS[index], label=label, **mark)
        ax.set(title=term, xlabel="epoch")
    axes[0, 0].set_ylabel("nats")
    axes[0, 0].legend(fontsize=8)
    return fig


def plot_frontier(groups, xlabel, ylabel, chance=None, zoom=None, separate=()):
    """Points with error bars, grouped and joined by a line: a trade-off between two figures of merit.

    groups: dict of name -> list of (x, y, x_error, y_error, label). chance: a y at which a dotted line is drawn.
    zoom: (low, high), a range of y that a second panel shows enlarged.
    separate: names of groups whose points are not joined. Raises ValueError if a group has no point.
    """
    if not groups or not all(groups.values()):
        raise ValueError("every group needs at least one point (x, y, x_error, y_error, label)")
    columns = 1 if zoom is None else 2
    fig, axes = plt.subplots(1, columns, figsize=(4.9 * columns, 4), squeeze=False, layout="constrained")
    for ax, limits in zip(axes[0], (None, zoom), strict=False):
        for index, (name, points) in enumerate(groups.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            x, y, x_error, y_error, labels = zip(*points, strict=True)
            bars = {"capsize": 3, "linewidth": 1, "markersize": 6, "label": name}
            ax.errorbar(x, y, y_error, x_error, fmt=marker if name in separate else f"-{marker}", color=colour, **bars)
            for position, label in zip(zip(x, y, strict=True), labels, strict=True):
                if limits or zoom is None:  # labels only where there is room for them
                    offset = {"xytext": (6, -12 if index % 2 else 6), "textcoords": "offset points", "annotation_clip": True}
                    ax.annotate(label, position, color=colour, fontsize=8, **offset)
        if chance is not None:
            ax.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
        ax.set(xlabel=xlabel, ylabel=ylabel, ylim=limits, title="enlarged" if limits else "")
    axes[0, 0].legend(fontsize=9)
    return fig


def _grid(grid_shape):
    """(rows, columns) as positive integers, or ValueError."""
    if len(grid_shape) != 2 or any(int(n) != n or n < 1 for n in grid_shape):
        raise ValueError(f"grid_shape must be two positive whole numbers (rows, columns), got {tuple(grid_shape)}")
    return int(grid_shape[0]), int(grid_shape[1])


def _labels(name, labels, count):
    """The labels as a list of strings, or None. Raises ValueError for a wrong number of them."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"{name} needs {count} labels, got {len(labels)}")
    return None if labels is None else [str(label) for label in labels]
