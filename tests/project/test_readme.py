"""The README: its ten lines run, its links lead somewhere. That its commands are understood says test_pages.py."""

import re

import pages
import pytest
import transcripts
from pages import PAGES, ROOT

import msrnn_jax as ms

PAGE = "README.md"


@pytest.mark.exhaustive
def test_its_ten_lines_run(smollm2, tmp_path):
    transcripts.prepare(tmp_path, "", smollm2)
    names = pages.run_python(PAGE, tmp_path)
    assert names["logits"].shape == (49152,) and names["state"].t == len(names["tokens"]) + 1
    assert names["state"].layers[0].positions.shape == (1, 9)
    assert len([line for line in pages.code(PAGE).splitlines() if line.strip()]) == 10


def test_it_is_short():
    assert len(PAGES[PAGE].splitlines()) <= 150


def test_its_relative_links_lead_somewhere():
    """Sphinx says the same of the site's pages."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[PAGE])
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_it_counts_the_policies_that_there_are():
    (others,) = re.findall(r"TOVA, H2O, Window, one of (\w+) others", PAGES[PAGE])
    (all_of_them,) = re.findall(r"(\d+) policies;", PAGES[PAGE])
    assert int(all_of_them) == len(ms.policies.POLICIES) and others == "seventeen" and int(all_of_them) == 3 + 17
