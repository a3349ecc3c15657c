"""Data of others as cases: one's own house, RCAEval, Cloud-OpsBench, OpenRCA 2.0."""

from verl_aiops.investigation.importers.run import (
    CASE_SOURCES,
    ImportedCases,
    cases_in,
    describe_case_sources,
    import_cases,
)

__all__ = ["CASE_SOURCES", "ImportedCases", "cases_in", "describe_case_sources", "import_cases"]
