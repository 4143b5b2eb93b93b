"""Building a run's prior with progress, for the commands that need it."""

from psa.cli.common import progress_bar
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.sessions import build_prior
from psa.runs import RunDirectory


def build_with_progress(autoencoder: SlotAutoencoder, run: RunDirectory) -> None:
    """Build the prior over scenes from the training images, and write it to the run."""
    with progress_bar() as bar:
        task = bar.add_task("building the prior", total=None, figures="")
        build_prior(autoencoder, run, lambda done, total: bar.update(task, completed=done, total=total))
