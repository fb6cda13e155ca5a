"""Walks the table of client-rows.yaml with the official client, all in one process: starting the client costs more than anything
that it asks for. Prints one line of JSON a row: {"step", "run", "wrong", "code", "shown"}. `wrong` is null where all is as the table
says; `code` is the exit status and `shown` what was printed, without what two services must differ in (ids, times, addresses, secrets).

Usage: client_rows.py TABLE AUTH_URL KEY_MANAGER_URL CA_FILE FOLDER < PASSWORD
"""

import base64
import contextlib
import hmac
import io
import json
import logging
import os
import re
import shlex
import struct
import sys
import time
from importlib.metadata import entry_points

import yaml
from openstackclient import shell

AUTH = {
    "username": "OS_USERNAME",
    "password": "OS_PASSWORD",
    "passcode": "OS_PASSCODE",
    "user_domain_name": "OS_USER_DOMAIN_NAME",
    "project_name": "OS_PROJECT_NAME",
    "project_domain_name": "OS_PROJECT_DOMAIN_NAME",
    "domain_name": "OS_DOMAIN_NAME",
    "system_scope": "OS_SYSTEM_SCOPE",
    "credential_id": "OS_APPLICATION_CREDENTIAL_ID",
    "credential_name": "OS_APPLICATION_CREDENTIAL_NAME",
    "credential_secret": "OS_APPLICATION_CREDENTIAL_SECRET",
}

# Where the client finds the commands that the table must have, all of them.
FAMILIES = ("openstack.identity.v3", "openstack.key_manager.v1")

# The seed of a second factor, and the files that commands read.
SEED = b"a seed of twenty oct"
FILES = {
    "policy": {"rule": "role:admin"},
    "filters": {"interface": "public"},
    "filters-wrong": {"color": "red"},
    "mapping": [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "REMOTE_USER"}]}],
}


# What is made up anew: tokens, ids, secrets without a form of their own (by the name of their field), times.
MADE_UP = [
    (re.compile(r"\b(gAAAA|AwAAA)[\w-]{60,}=*"), "<token>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"\b20[0-8]\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?"), "<time>"),
]
SECRET_FIELDS = ("Secret", "secret", "oauth_verifier")


def one_time_password():
    """RFC 6238 as Keystone has it. The step before the present one counts as well, so it is good for thirty seconds at least."""
    mac = hmac.digest(SEED, struct.pack(">Q", int(time.time()) // 30), "sha1")
    number = struct.unpack_from(">I", mac, mac[-1] & 0x0F)[0] & 0x7FFFFFFF
    return f"{number % 1_000_000:06}"


def words(row):
    """The words of a row's command, without the client's own options before it, each of which has a value."""
    found = shlex.split(row["run"])
    while found[0].startswith("--"):
        found = found[2:]
    return tuple(found)


def uncovered(rows):
    """Commands of the client that no row runs, and rows that run none."""
    commands = {
        tuple(entry.name.replace("_", " ").split(" ")) for family in FAMILIES for entry in entry_points(group=family)
    }
    if not commands:
        yield "", "the client has no commands of these families"
    run = {
        max((c for c in commands if row[: len(c)] == c), key=len, default=row) for row in map(words, rows)
    }
    for command in sorted(commands ^ run):
        if command in commands:
            yield " ".join(command), "a command of the client that no row of the table runs"
        else:
            yield " ".join(command), "a row that is no command of the client"


def filled(text, saved):
    for name, value in saved.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def environment(cloud, saved, auth_url, ca, folder):
    for name in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[name]
    os.environ.update(
        OS_AUTH_URL=auth_url,
        OS_CACERT=ca,
        OS_IDENTITY_API_VERSION="3",
        OS_REGION_NAME="RegionOne",
        OS_CLIENT_CONFIG_FILE=os.devnull,
    )
    if "methods" in cloud:
        several_methods(cloud, saved, auth_url, folder)
        return
    if "credential_secret" in cloud:
        os.environ["OS_AUTH_TYPE"] = "v3applicationcredential"
    else:
        os.environ["OS_AUTH_TYPE"] = "v3totp" if "passcode" in cloud else "v3password"
        os.environ["OS_USER_DOMAIN_NAME"] = "Default"
        if "project_name" in cloud:
            os.environ["OS_PROJECT_DOMAIN_NAME"] = "Default"
    for name, value in cloud.items():
        os.environ[AUTH[name]] = filled(value, saved)


def several_methods(cloud, saved, auth_url, folder):
    """The client takes a list of methods only from a file."""
    auth = {name: filled(value, saved) for name, value in cloud.items() if name != "methods"}
    auth.update(auth_url=auth_url, user_domain_name="Default", project_domain_name="Default")
    several = {"auth_type": "v3multifactor", "auth_methods": cloud["methods"], "auth": auth}
    path = os.path.join(folder, "clouds.yaml")
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump({"clouds": {"several": several}}, file)
    os.environ.update(OS_CLIENT_CONFIG_FILE=path, OS_CLOUD="several")


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


def plain(value, places):
    """What was printed without what is made up anew; `places` are the addresses of the two services."""
    if isinstance(value, dict):
        return {
            plain(name, places): "<secret>" if name in SECRET_FIELDS else plain(inner, places)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return sorted((plain(inner, places) for inner in value), key=lambda inner: json.dumps(inner, sort_keys=True))
    if not isinstance(value, str):
        return value
    for address, name in places:
        value = value.replace(address, name)
    for form, name in MADE_UP:
        value = form.sub(name, value)
    return value


def shown(row, places, code, out, err):
    """What a person sees; of a refusal, whether it has the row's words, for the rest of them is each service's own."""
    if code:
        return {"says": row.get("says", "") in out + err}
    try:
        return plain(json.loads(out), places)
    except ValueError:
        # A table is as wide as what is in it.
        return re.sub(r"[+\s]*(-{3,}[+\s]*)+|\s+", " ", plain(out, places)).strip()


def keep(row, saved, out):
    """Keeps what later rows need, whether all else is as the row says or not."""
    try:
        found = json.loads(out)
    except ValueError:
        return
    first = (found[:1] or [{}])[0] if isinstance(found, list) else found
    for name, field in row.get("save", {}).items():
        if field in first:
            saved[name] = first[field]


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
    for field in row.get("save", {}).values():
        if field not in rows[0]:
            return f"no {field}"
    return None


def reads(row):
    return any(name in row for name in ("fields", "rows", "column", "values", "save"))


def main():
    table, auth_url, key_manager, ca, folder = sys.argv[1:]
    with open(table, encoding="utf-8") as file:
        table = yaml.safe_load(file)
    password = sys.stdin.read().strip()
    for name, content in FILES.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    places = [(key_manager, "<key-manager>"), (auth_url.removesuffix("/v3"), "<identity>")]
    for command, wrong in uncovered(table["rows"]):
        print(json.dumps({"step": "all commands", "run": command, "wrong": wrong, "code": 0, "shown": None}), flush=True)
    saved = {"admin_password": password, "key_manager": key_manager, "dir": folder}
    saved["totp_seed"] = base64.b32encode(SEED).decode()
    for row in table["rows"]:
        cloud = table["clouds"][row.get("as", "admin")]
        saved["totp"] = one_time_password()
        environment(cloud, saved, auth_url, ca, folder)
        argv = shlex.split(filled(row["run"], saved))
        if reads(row):
            argv += ["-f", "json"]
        answer = call(argv)
        keep(row, saved, answer[1])
        wrong = differs(row, saved, *answer)
        line = {"step": row["step"], "run": row["run"], "wrong": wrong, "code": answer[0]}
        print(json.dumps({**line, "shown": shown(row, places, *answer)}), flush=True)


main()
