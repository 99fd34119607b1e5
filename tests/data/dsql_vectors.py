"""Prints dsql_vectors.json: DSQL tokens of botocore at a fixed time. Needs botocore, which script/bootstrap tests installs."""

import datetime
import json
from unittest import mock

import botocore
import botocore.session

TIME = datetime.datetime(2016, 11, 7, 17, 39, 33, tzinfo=datetime.timezone.utc)
CASES = [
    ("abc123.dsql.us-east-1.on.aws", "us-east-1", "app", None),
    ("abc123.dsql.us-east-1.on.aws", "us-east-1", "admin", None),
    ("abc123.dsql-fips.us-west-2.on.aws", "us-west-2", "app", "SES/SION+TOK=EN=="),
]


def token(host, region, user, session_token):
    session = botocore.session.Session()
    session.set_credentials("akid", "skid", session_token)
    client = session.create_client("dsql", region_name=region)
    generate = client.generate_db_connect_admin_auth_token if user == "admin" else client.generate_db_connect_auth_token
    with mock.patch("botocore.auth.get_current_datetime", lambda *_, **__: TIME):
        return generate(host)


def vector(host, region, user, session_token):
    return {
        "source": f"computed with botocore {botocore.__version__}",
        "host": host,
        "port": 5432,
        "user": user,
        "region": region,
        "access_key": "akid",
        "secret_key": "skid",
        "session_token": session_token,
        "time": "20161107T173933Z",
        "token_canonical_order": token(host, region, user, session_token),
    }


print(json.dumps([vector(*case) for case in CASES], indent=1))
