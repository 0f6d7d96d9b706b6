"""What schemathesis can't know of the contract by its description.

Tokens are made here, as the tests play the issuer. Everything else is a rule that OpenAPI has no words for; each says
which, and lets go of nothing else.
"""

import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import time
import uuid

import schemathesis

SECRET = os.environ["HOLDFAST_JWT_SECRET"].encode()

# Whether PostgreSQL is away.
OUTAGE = "HOLDFAST_OUTAGE" in os.environ

# What a request that is well-formed may still meet, for what there is or was before: a tag that isn't the current one,
# an id that was deleted, a key that was used with another body.
BY_STATE = {"/problems/precondition-failed", "/problems/gone", "/problems/key-reused"}

# What is taken for a cursor or a key, be it one or not.
WORD = re.compile("[A-Za-z0-9_-]+")

REQUESTS = itertools.count()


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token() -> str:
    """A token of one user's, of a session of its own."""
    now = int(time.time())
    claims = {"sub": "schemathesis", "iat": now, "exp": now + 86400, "jti": str(uuid.uuid4())}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return signed + "." + part(hmac.new(SECRET, signed.encode(), hashlib.sha256).digest())


@schemathesis.auth(refresh_interval=None)
class Bearer:
    """A fresh session for each request, since requests may end the session that sends them."""

    def get(self, case, context):
        return token()

    def set(self, case, data, context):
        case.headers["Authorization"] = "Bearer " + data


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """One time zone is as good as another, and there are 600: a few of them will do."""
    del raw_schema["components"]["schemas"]["TimeZone"]["enum"][5:]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Takes away what would have nearly every request refused before anything else of it is looked at. One request in
    eight keeps it, so that the refusals are seen too."""
    is_kept = next(REQUESTS) % 8 == 0
    # Nothing of the contract hangs on how long a wait is, but the time the run takes.
    wait = str((case.query or {}).get("wait", ""))
    if wait.isdecimal() and int(wait) <= 60:
        case.query["wait"] = 1 if is_kept else 0
    if is_kept:
        return
    # Conditions that are made up don't hold, but for `*`.
    for condition in ("If-Match", "If-None-Match"):
        case.headers.pop(condition, None)
    # A cursor is what `next_cursor` said.
    if WORD.fullmatch(str((case.query or {}).get("cursor", ""))):
        del case.query["cursor"]
    # A key is for one write only, and schemathesis likes the same one.
    if WORD.fullmatch(case.headers.get("Idempotency-Key", "")):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())


@schemathesis.hook
def filter_failure(context, failure, case, response):
    if failure.code == "ST202":
        return not may_be_refused(case, response)
    if failure.code == "ST201":
        return not is_an_unknown_header_only(case)
    if failure.code == "ST101":
        return not is_an_outage(case, response)
    return True


def may_be_refused(case, response) -> bool:
    """Whether a request that is well-formed was refused for a reason that no schema can say."""
    if case.method == "HEAD":
        # The answer to a HEAD says no more than its status.
        return response.status_code in (410, 412) or (response.status_code == 400 and has_made_up_cursor(case))
    problem = response.json()
    if problem["type"] == "/problems/bad-parameter":
        return has_made_up_cursor(case) and " cursor " in problem["detail"]
    return problem["type"] in BY_STATE


def is_an_outage(case, response) -> bool:
    """With PostgreSQL away a node says 503 of what it doesn't know (that it says when to come back, and how it says it,
    is checked like any answer). Everywhere else no answer may be 5xx."""
    return OUTAGE and response.status_code == 503


def has_made_up_cursor(case) -> bool:
    """Any cursor that no `next_cursor` said is refused (400)."""
    return "cursor" in (case.query or {})


def is_an_unknown_header_only(case) -> bool:
    """HTTP lets every request have headers that the server doesn't know. Schemathesis knows, but where another header is
    a number it takes that, read as the text it is on the wire, for a second fault."""
    return "x-schemathesis-unknown-property" in case.headers
