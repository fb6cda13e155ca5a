"""Walks the table of client-rows.yaml with the official client, all in one process: starting the client costs more than anything
that it asks for. Prints one line of JSON a row: {"step", "run", "wrong"}; wrong is null where all is as the table says.

Usage: client_rows.py TABLE AUTH_URL KEY_MANAGER_URL CA_FILE FOLDER < PASSWORD
"""

import contextlib
import io
import json
import logging
import os
import shlex
import sys

import yaml
from openstackclient import shell

AUTH = {
    "username": "OS_USERNAME",
    "password": "OS_PASSWORD",
    "user_domain_name": "OS_USER_DOMAIN_NAME",
    "project_name": "OS_PROJECT_NAME",
    "project_domain_name": "OS_PROJECT_DOMAIN_NAME",
    "domain_name": "OS_DOMAIN_NAME",
    "system_scope": "OS_SYSTEM_SCOPE",
    "credential_id": "OS_APPLICATION_CREDENTIAL_ID",
    "credential_name": "OS_APPLICATION_CREDENTIAL_NAME",
    "credential_secret": "OS_APPLICATION_CREDENTIAL_SECRET",
}


def filled(text, saved):
    for name, value in saved.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def environment(cloud, saved, auth_url, ca):
    for name in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[name]
    os.environ.update(
        OS_AUTH_URL=auth_url,
        OS_CACERT=ca,
        OS_IDENTITY_API_VERSION="3",
        OS_REGION_NAME="RegionOne",
        OS_CLIENT_CONFIG_FILE=os.devnull,
    )
    if "credential_secret" in cloud:
        os.environ["OS_AUTH_TYPE"] = "v3applicationcredential"
    else:
        os.environ["OS_AUTH_TYPE"] = "v3password"
        os.environ["OS_USER_DOMAIN_NAME"] = "Default"
        if "project_name" in cloud:
            os.environ["OS_PROJECT_DOMAIN_NAME"] = "Default"
    for name, value in cloud.items():
        os.environ[AUTH[name]] = filled(value, saved)


def call(argv):
    """Exit status, what was printed, what was said."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger("")
    for handler in list(root.handlers):
        root.removeHandler(handler)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = shell.OpenStackShell().run(argv)
        except SystemExit as end:
            code = end.code
        except Exception as error:  # what the program would end with
            err.write(f"{type(error).__name__}: {error}")
            code = 1
    return int(code or 0), out.getvalue(), err.getvalue()


def differs(row, saved, code, out, err):
    """What is not as the row says, or None."""
    wanted = row.get("exit", 0)
    if code != wanted:
        return f"ended with {code}, not {wanted}: {(out + err)[-600:]}"
    if row.get("says", "") not in out + err:
        return f"did not say {row['says']!r}: {(out + err)[-600:]}"
    if not reads(row):
        return None
    try:
        found = json.loads(out)
    except ValueError:
        return f"no JSON: {out[-300:]}{err[-300:]}"
    rows = found if isinstance(found, list) else [found]
    if "rows" in row and len(rows) != row["rows"]:
        return f"{len(rows)} rows, not {row['rows']}: {out[-1500:]}"
    if "fields" in row:
        fields = sorted(row["fields"])
        for one in rows:
            if sorted(one) != fields:
                return f"fields {sorted(one)}, not {fields}"
        if not rows:
            return "an empty list shows no columns"
    if "column" in row:
        name, values = row["column"]
        column = sorted(str(one[name]) for one in rows)
        if column != sorted(values):
            return f"{name}: {column}, not {sorted(values)}"
    for name, value in row.get("values", {}).items():
        if isinstance(value, str):
            value = filled(value, saved)
        got = rows[0][name]
        if isinstance(value, list):
            got = sorted(got)
        if got != value:
            return f"{name} is {rows[0][name]!r}, not {value!r}"
    for name, field in row.get("save", {}).items():
        saved[name] = rows[0][field]
    return None


def reads(row):
    return any(name in row for name in ("fields", "rows", "column", "values", "save"))


def main():
    table, auth_url, key_manager, ca, folder = sys.argv[1:]
    with open(table, encoding="utf-8") as file:
        table = yaml.safe_load(file)
    password = sys.stdin.read().strip()
    with open(os.path.join(folder, "policy"), "w", encoding="utf-8") as file:
        file.write('{"rule": "role:admin"}')
    saved = {"admin_password": password, "key_manager": key_manager, "dir": folder}
    for row in table["rows"]:
        cloud = table["clouds"][row.get("as", "admin")]
        environment(cloud, saved, auth_url, ca)
        argv = shlex.split(filled(row["run"], saved))
        if reads(row):
            argv += ["-f", "json"]
        wrong = differs(row, saved, *call(argv))
        if "missing" in row:
            if wrong is None:
                wrong = f"works, and the table says that it is missing ({row['missing']}): take the word away"
            else:
                wrong = None
        print(json.dumps({"step": row["step"], "run": row["run"], "wrong": wrong}), flush=True)


main()
