"""Runs bqemulator, in its own environment, with what BigQuery does and bqemulator 1.4.0 does not.

- tables.list gives each table's labels.
- Query parameters reach the statements of a script.
"""

import contextvars
import sys

from bqemulator.api.routes import jobs, tables
from bqemulator.cli import main
from bqemulator.jobs import executor
from bqemulator.scripting import interpreter

_item, _bind, _execute = tables._table_to_list_item, interpreter.bind_parameters, executor.execute_query_job
_parameters = contextvars.ContextVar("parameters", default=None)


def _with_labels(table):
    return {**_item(table), "labels": table.labels}


def _bind_in_script(sql, given=None):
    return _bind(sql, given or _parameters.get())


async def _execute_with_parameters(project, job, sql, query_params, *rest, **options):
    _parameters.set(query_params)
    return await _execute(project, job, sql, query_params, *rest, **options)


tables._table_to_list_item = _with_labels
interpreter.bind_parameters = _bind_in_script
for module in (executor, jobs):
    if hasattr(module, "execute_query_job"):
        module.execute_query_job = _execute_with_parameters

if __name__ == "__main__":
    sys.exit(main())
