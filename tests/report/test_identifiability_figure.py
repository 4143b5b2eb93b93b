from psa.report import pictures
from psa.report.identifiability import Learning, SeedPoint, contrast_figure, learning_figure


def points() -> list[SeedPoint]:
    return [
        SeedPoint("sa", 0.1, 0.02, 0.6, 0.3),
        SeedPoint("sa", 0.2, 0.03, 0.5, 0.2),
        SeedPoint("ae", 1.0, 0.01, None, 0.0),
    ]


def test_every_run_is_a_mark_of_its_model_in_both_panels():
    figure = contrast_figure(points())
    panels = figure.axes[:2]
    for axes in panels:
        marks = [tuple(mark.get_offsets()[0]) for mark in axes.collections]
        assert marks == [(point.contrast, point.error) for point in points()]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sa", "ae"]


def test_colours_follow_the_scores_and_a_missing_one_has_none():
    figure = contrast_figure(points())
    pictures.figure_png(figure)  # colours are found when it is drawn
    smcc, sis = ([mark.get_facecolors()[0].tolist() for mark in axes.collections] for axes in figure.axes[:2])
    assert smcc[0] != smcc[1]
    assert smcc[2][3] == 0.0
    assert len({tuple(colour) for colour in sis}) == 3
    assert all(colour[3] == 1.0 for colour in sis)


def test_one_run_alone_can_be_drawn():
    assert pictures.figure_png(contrast_figure(points()[2:])).startswith(b"\x89PNG")


def test_lines_over_training_are_means_of_seeds():
    curves = [[{"step": 0, "smcc": 0.0, "sis": 0.0}, {"step": 10, "smcc": s, "sis": s / 2}] for s in (0.4, 0.6)]
    figure = learning_figure([Learning("psa", curves)])
    for axes, last in zip(figure.axes, (0.5, 0.25), strict=True):
        (line,) = axes.lines
        assert list(line.get_xdata()) == [0, 10]
        assert list(line.get_ydata()) == [0.0, last]
