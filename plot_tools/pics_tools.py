"""Figures for the chapters: image grids, latent maps, curves of loss terms, the leakage-distortion frontier.

Each function returns a matplotlib Figure and changes no global style; foreground and background are those of the style in use, so dark
themes work. None of them calls `plt.show()`: in a notebook, write `fig = plot_...(...)` and the figure appears once.
"""

import matplotlib.pyplot as plt
import numpy as np

# Okabe & Ito's colours, readable for the colour-blind; markers and line styles tell the same in greyscale. Their black is a grey
# here, which stands out from a white page and from a black one.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIXED = {"CVAE": 0, "ICVAE": 1, "VAE": 6, "original": 4, "Echo": 2, "forget": 3}  # a method looks the same in every figure


def plot_image_grid(images, image_shape, grid_shape, row_labels=None, col_labels=None):
    """Draw images row by row in a grid.

    images: (N, ...) array, N >= 1, each image with as many values as image_shape. Greyscale runs from 0 (black) to 1 (white),
    RGB likewise; integers of 8 bits run from 0 to 255. Values a little outside are clipped. image_shape: (height, width) or
    (height, width, 3), channels last. grid_shape: (rows, columns); cells beyond N stay blank. row_labels, col_labels: one label for
    each row or column. Raises ValueError if there is no image, if the images don't fit the shape or the grid, if they are not finite
    or lie far outside [0, 1], or if labels are missing.
    """
    images, image_shape, (rows, columns) = np.asarray(images), _shape(image_shape), _grid(grid_shape)
    if images.ndim < 2 or images.size == 0 or images[0].size != np.prod(image_shape):
        raise ValueError(
            f"images must be a non-empty array (N, ...) with {np.prod(image_shape)} values an image for image_shape {image_shape}, "
            f"got an array of shape {images.shape}"
        )
    if len(images) > rows * columns:
        raise ValueError(f"{len(images)} images don't fit a grid of {rows} x {columns} = {rows * columns} cells")
    images = _pixels(images, image_shape)
    row_labels, col_labels = _labels("row_labels", row_labels, rows), _labels("col_labels", col_labels, columns)

    height, width = image_shape[:2]
    cell = 0.52 / max(height, width)  # the longer side of an image is about half an inch
    beside = 0.2 + 0.11 * max(map(len, row_labels)) if row_labels else 0  # inches for the longest label
    size = (columns * cell * width + beside, rows * cell * height + 0.25 * bool(col_labels))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for index, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[], anchor="E" if row_labels else "C")  # right: room for the labels on the left
        ax.spines[:].set_visible(False)
        if index < len(images):
            ax.imshow(np.clip(images[index].reshape(image_shape), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        else:  # an empty axis of the same shape keeps the grid regular
            ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        if index < columns and col_labels:
            ax.set_title(col_labels[index], fontsize=10)
        if index % columns == 0 and row_labels:
            ax.set_ylabel(row_labels[index // columns], fontsize=10, rotation=0, ha="right", va="center")
    return fig


def plot_latent_map(maps, labels, titles, xlabel="", ylabel=""):
    """Scatter plots of two-dimensional codes, side by side, coloured and numbered by class.

    maps: list of (N, 2) arrays. labels: (N,) integers or one-hot rows (N, K), shared by all maps. titles: one for each map.
    The number of each class stands at the median of its points, so the figure can be read without colours.
    Raises ValueError if a map is not (N, 2) with one label a point.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and np.all(np.isin(labels, (0, 1))) and np.all(labels.sum(1) == 1):
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise ValueError(f"labels must be integers (N,) or one-hot rows (N, K), got the shape {labels.shape}")
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
            box = {"boxstyle": "circle,pad=0.15", "facecolor": ax.get_facecolor(), "edgecolor": colour, "linewidth": 1.5}
            ax.text(*np.median(np.asarray(points)[labels == name], axis=0), str(name), fontsize=8, ha="center", va="center", bbox=box)
        ax.set(title=title, xlabel=xlabel, xticks=[], yticks=[])
    axes[0, 0].set_ylabel(ylabel)
    return fig


def plot_curves(histories, terms):
    """Loss terms against epochs: one panel for each term, one colour for each model, training solid, held-out dashed.

    histories: dict of name -> dict of lists, as `fit(...).history` returns it; held-out terms begin with "val_".
    terms: names of the terms to show. A model without a term is left out of that panel.
    Raises ValueError if there is nothing to show, or if no model has a term.
    """
    terms = [terms] if isinstance(terms, str) else list(terms)
    if not isinstance(histories, dict) or not histories or not terms:
        raise ValueError("histories must be a dict of name -> history (a dict of lists), and terms must name at least one")
    styles = _styles(histories)
    fig, axes = plt.subplots(1, len(terms), figsize=(2.8 * len(terms) + 0.4, 2.8), squeeze=False, layout="constrained")
    for ax, term in zip(axes[0], terms, strict=True):
        if not any(term in history for history in histories.values()):
            plt.close(fig)
            raise ValueError(f"no history has the term {term!r}; they have {sorted(set().union(*histories.values()))}")
        for name, history in histories.items():
            colour, marker = styles[name]
            for key, style in ((term, "-"), (f"val_{term}", "--")):
                if key in history:
                    epochs = np.arange(1, len(history[key]) + 1)
                    label = f"{name}, {'held-out' if key != term else 'training'}"
                    mark = {"marker": marker, "markevery": max(1, len(epochs) // 8), "markersize": 4}
                    ax.plot(epochs, history[key], style, color=colour, label=label, **mark)
        ax.set(title=term, xlabel="epoch")
    axes[0, 0].set_ylabel("nats")
    axes[0, 0].legend(fontsize=8)
    return fig


def plot_frontier(groups, xlabel, ylabel, chance=None, zoom=None, separate=()):
    """Points with error bars, grouped and joined by a line: a trade-off between two figures of merit.

    groups: dict of name -> list of (x, y, x_error, y_error, label). chance: a y at which a dotted line is drawn.
    zoom: (low, high), a range of y that a second panel shows enlarged, with the labels.
    separate: names of groups whose points are not joined. Raises ValueError if a group has no point.
    """
    whole = {"groups": groups, "ylabel": ylabel, "chance": chance}
    if zoom is None:
        return plot_frontiers([whole], xlabel, separate)
    return plot_frontiers([{**whole, "labels": False}, {**whole, "ylim": zoom, "title": "enlarged"}], xlabel, separate)


def plot_frontiers(panels, xlabel, separate=()):
    """`plot_frontier` for several quantities over one x, side by side; a group has one colour and marker in all panels.

    panels: list of dicts with groups and ylabel as in `plot_frontier`; chance, ylim (low, high), title, and labels=False, which leaves
    the labels of the points out, may be added. Raises ValueError for a group without a point or a point without five entries.
    """
    for panel in panels:
        for name, points in panel["groups"].items():
            if not points or any(len(point) != 5 for point in points):
                raise ValueError(f"group {name!r} needs at least one point (x, y, x_error, y_error, label)")
        low, high = panel.get("ylim") or (0, 1)
        if not panel["groups"] or not low < high:
            raise ValueError("every panel needs at least one group, every group at least one point, and ylim (or zoom) low < high")
    styles = _styles(dict.fromkeys(name for panel in panels for name in panel["groups"]))
    size = 4.9 * len(panels), 4 + 0.1 * len(styles)  # with room for the legend
    fig, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for ax, panel in zip(axes[0], panels, strict=True):
        for name, points in panel["groups"].items():
            (colour, marker), (x, y, x_error, y_error, _) = styles[name], zip(*points, strict=True)
            bars = {"capsize": 3, "linewidth": 1, "markersize": 6, "label": name}
            ax.errorbar(x, y, y_error, x_error, fmt=marker if name in separate else f"-{marker}", color=colour, **bars)
        if panel.get("chance") is not None:
            ax.axhline(panel["chance"], color=plt.rcParams["text.color"], linestyle=":", linewidth=1, label="chance")
        ax.set(xlabel=xlabel, ylabel=panel["ylabel"], ylim=panel.get("ylim"), title=panel.get("title", ""))
    axes[0, 0].legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)  # above: it hides no point
    fig.draw_without_rendering()  # now the places of the axes are known
    for ax, panel in zip(axes[0], panels, strict=True):
        if panel.get("labels", True):
            _place_labels(ax, panel["groups"], styles)
    return fig


PLACES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.6), (0, -1.6), (1, 2.2), (-1, 2.2), (1, -2.2), (-1, -2.2), (2.5, 0), (-2.5, 0))


def _place_labels(ax, groups, styles):
    """Write the label of each point beside it, where it lies on no marker and on no other label, as far as there is room."""
    inside = [(name, point) for name, points in groups.items() for point in points if ax.get_ylim()[0] <= point[1] <= ax.get_ylim()[1]]
    scale = ax.figure.dpi / 72
    taken = [np.array([[-4, -4], [4, 4]]) * scale + ax.transData.transform(point[:2]) for _, point in inside]
    for name, (*xy, _, _, label) in inside:
        if not str(label):
            continue
        size, best = np.array([4.8 * len(str(label)), 9]), None  # of 8-point letters, in points
        for dx, dy in PLACES:
            shift = (np.sign((dx, dy)) - 1) / 2 * size  # the box ends, is centred, or begins at the point
            corner = 6 * np.array((dx, dy)) + shift
            box = ax.transData.transform(xy[:2]) + np.array([corner, corner + size]) * scale
            overlap = sum(np.prod(np.clip(np.minimum(box[1], other[1]) - np.maximum(box[0], other[0]), 0, None)) for other in taken)
            if best is None or overlap < best[0] - 1e-9:
                best = overlap, corner, box
        taken.append(best[2])
        ax.annotate(str(label), xy[:2], xytext=best[1], textcoords="offset points", color=styles[name][0], fontsize=8, annotation_clip=True)


def _styles(names):
    """A colour and a marker for each name: fixed for the methods of the series, the others share what is left."""
    fixed = {name: FIXED[head] for name in names if (head := str(name).split(",")[0].split(":")[0].split(" ")[0]) in FIXED}
    fixed = {name: index for name, index in fixed.items() if list(fixed.values()).count(index) == 1}  # two ICVAEs must differ
    free = [index for index in range(len(COLOURS)) if index not in fixed.values()] or list(range(len(COLOURS)))
    others = [name for name in names if name not in fixed]
    found = {name: (COLOURS[index], MARKERS[index]) for name, index in fixed.items()}
    for place, name in enumerate(others):
        index, lap = free[place % len(free)], place // len(free)  # after a lap: the same colours with other markers
        found[name] = COLOURS[index], MARKERS[(index + lap) % len(MARKERS)]
    return found


def _shape(image_shape):
    """(height, width) or (height, width, 3), or ValueError."""
    image_shape = tuple(image_shape) if np.ndim(image_shape) == 1 else image_shape
    if np.ndim(image_shape) != 1 or len(image_shape) not in (2, 3) or image_shape[2:] not in ((), (3,)):
        raise ValueError(f"image_shape must be (height, width) or (height, width, 3), channels last, got {image_shape}")
    return image_shape


def _pixels(images, image_shape):
    """Images as floats for display: 8-bit integers over 255. Raises ValueError for channels first, NaN, or numbers far outside [0, 1]."""
    own = images.shape[1:]
    if len(own) > 1 and own != image_shape and own != (*image_shape, 1):
        raise ValueError(f"images must be (N, values) or (N, *image_shape), channels last: got {own} an image for {image_shape}")
    if images.dtype == np.uint8:
        return images / 255
    images = images.astype(float)
    if not np.all(np.isfinite(images)) or images.min() < -1 or images.max() > 2:
        raise ValueError(f"pixels must be finite and lie in [0, 1] (or be 8-bit integers), got [{images.min():g}, {images.max():g}]")
    return images


def _grid(grid_shape):
    """(rows, columns) as positive integers, or ValueError."""
    if np.ndim(grid_shape) != 1 or len(grid_shape) != 2 or any(int(n) != n or n < 1 for n in grid_shape):
        raise ValueError(f"grid_shape must be two positive whole numbers (rows, columns), got {grid_shape}")
    return int(grid_shape[0]), int(grid_shape[1])


def _labels(name, labels, count):
    """The labels as a list of strings, or None. Raises ValueError for a wrong number of them."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"{name} needs {count} labels, got {len(labels)}")
    return None if labels is None else [str(label) for label in labels]
