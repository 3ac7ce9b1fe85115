"""The sections of a report, in the order of the paper."""

from experiments.report import (
    section_extrapolation,
    section_generation,
    section_language_modeling,
    section_needle,
    section_retention,
    section_throughput,
    section_understanding,
)
from experiments.report.content import Section
from experiments.report.records import Records

SECTIONS = (
    section_language_modeling,
    section_understanding,
    section_generation,
    section_throughput,
    section_extrapolation,
    section_retention,
    section_needle,
)


def make_sections(records: Records) -> list[Section]:
    """The sections of what is there."""
    made = [section.make(records) for section in SECTIONS]
    return [section for section in made if section is not None]
