"""Fine-tuning: D_t alone, from the weights of t-1; the incremental update of every paper here."""

from incrs.updaters.base import Updater


class Finetune(Updater):
    """The neutral element: answers at no opening, so the last weights just train on D_t."""
