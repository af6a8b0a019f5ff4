from tests.layout_page import ROOT, replaced


def test_the_layout_in_build_is_that_of_the_modules():
    text = (ROOT / "BUILD.md").read_text()
    assert replaced(text) == text, "run `python tests/layout_page.py`"
