"""The run-time checker of annotations: beartype, with an int where a float is declared, as PEP 484 and mypy have it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
