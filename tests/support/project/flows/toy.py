"""The flow of the small project, controlled by `tracking.experiment`."""

import sys

from prefect import flow

from flows.command.cli import main
from tasks import toy as steps
from tasks.cache.artifact import Store
from tasks.cache.step import record_executions
from tasks.config.parameters import Parameters


@flow(validate_parameters=False)
def toy(parameters: Parameters) -> None:
    """Count, combine, and then fail or take long if `tracking.experiment` says so."""
    store = Store(parameters.store_path)
    with record_executions() as executions:
        numbers = steps.count(store, upto=5)
        print(steps.combine.submit(store, numbers, method="total").result().digest)
        if parameters.tracking.experiment == "fail":
            steps.combine.submit(store, steps.fail.submit(store, numbers), method="total").result()
        if parameters.tracking.experiment == "long":
            steps.take_long(store)
    print([execution.task for execution in executions.collect() if not execution.reused])


if __name__ == "__main__":
    sys.exit(main(toy))
