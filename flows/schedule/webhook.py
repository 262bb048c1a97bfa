"""Notification of the outcome of scheduled runs by a webhook: a POST of JSON to the URL in the environment variable `MGAA_WEBHOOK`.

The URL is often a secret, so it is in no file, no parameter and no message, and Prefect does not know it: the worker passes its environment
on. Prefect calls the hooks: for a failure in the run itself, for a crash in the worker, which outlives the run. A webhook that does not
answer causes a warning in the log and nothing else. `text` is what Slack, Mattermost and the like display; the rest is for programs.
"""

import json
import logging
import os
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mgaa.masking import mask_values

VARIABLE = "MGAA_WEBHOOK"
PATIENCE = 10.0
"""Seconds to wait for an answer."""


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of Prefect: post the final state of a flow run, and the reason, to the webhook."""
    news = {
        "text": f"{flow_run.name} of {flow.name}: {state.name}. {state.message or ''}".strip(),
        "state": state.name,
        "flow": flow.name,
        "run": flow_run.name,
        "flow_run": str(flow_run.id),
        "parameters": flow_run.parameters,
        "message": state.message,
    }
    post_news(mask_values(news), logging.getLogger("prefect.flow_runs"))


def post_news(news: dict[str, Any], log: logging.Logger) -> None:
    """Post the news, if a webhook is set."""
    url = os.environ.get(VARIABLE)
    if not url:
        return
    try:
        request = Request(url, json.dumps(news).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=PATIENCE):
            pass
    except (OSError, ValueError) as error:  # an invalid URL, a host that is gone, an answer that is no success
        log.warning("The webhook of %s (%s) could not be reached: %s", VARIABLE, host(url), reason(error))


def host(url: str) -> str:
    """Host of a URL, the only part safe to show: its path and its user are often the secret."""
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no URL"


def reason(error: Exception) -> str:
    """Description of the error, without the URL."""
    if isinstance(error, HTTPError):
        return f"it answered {error.code}"
    cause = getattr(error, "reason", error)
    return type(cause).__name__ if isinstance(error, ValueError) else f"{type(cause).__name__}: {cause}"
