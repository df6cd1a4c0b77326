"""The parts of `scripts/faultstorm.py`: runs that are hurt, resumed and compared with runs that were not."""
