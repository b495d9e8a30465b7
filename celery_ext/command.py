"""``celery -A app slotline ...``: the operator's commands on the store of an app.

Each ``celery`` command imports this module; what only this one needs is imported when it runs.
"""

from __future__ import annotations

import click


@click.command(
    "slotline",
    add_help_option=False,  # the commands have their own
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Look at limits and caches: pools, holders, waiting, explain, resize, purge, ...",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def slotline(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Look at limits and caches."""
    from celery_ext.config import runtime  # noqa: PLC0415 - see above
    from celery_ext.purging import Revoking  # noqa: PLC0415 - see above
    from slotline.cli import main  # noqa: PLC0415 - see above

    app = context.obj.app
    store, answer = runtime(app).store, Revoking(app)
    if "metrics" in arguments:  # pools are called by what tasks declare
        from celery_ext.limits import LimitReader  # noqa: PLC0415 - see above

        app.loader.import_default_modules()
        LimitReader(app, runtime(app).config, store)
    context.exit(main(arguments, store=store, prog="celery slotline", setting="slotline_redis_url", answer=answer))
