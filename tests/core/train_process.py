"""`dlm train` in processes of their own, forked from one that has imported torch already."""

import multiprocessing
import os
from multiprocessing.process import BaseProcess

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["dlm_core.training.run"])


def start(arguments: list[str], **environment: str) -> BaseProcess:
    """The running process; its exit code is that of the command."""
    process = _FORKS.Process(target=_run, args=(arguments, environment))
    process.start()
    return process


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    import torch

    from dlm_core.training.run import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))
