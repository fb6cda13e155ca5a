"""A service behind keystonemiddleware's auth_token, which asks the identity service about every token. Ends with 0 when all went as
it must.

Usage: middleware_story.py AUTH_URL CA_FILE < PASSWORD   (user admin of project admin; CA_FILE may be empty)
"""

import sys

import requests
import webob
from keystonemiddleware import auth_token

AUTH_URL, CA = sys.argv[1:]
PASSWORD = sys.stdin.read().strip()
VERIFY = CA or True


def expect(found, wanted, what):
    if found != wanted:
        sys.exit(f"{what}: {found!r}, not {wanted!r}")


def call(method, path, body=None, token=None, status=(200, 201, 204)):
    headers = {"X-Auth-Token": token} if token else {}
    answer = requests.request(method, AUTH_URL + path, json=body, headers=headers, verify=VERIFY, timeout=60)
    if answer.status_code not in status:
        sys.exit(f"{method} {path}: {answer.status_code} {answer.text}")
    return answer


def login(identity, scope=None):
    auth = {"identity": identity}
    if scope:
        auth["scope"] = scope
    return call("POST", "/auth/tokens", {"auth": auth}).headers["X-Subject-Token"]


def by_password(user, password, project):
    user = {"name": user, "domain": {"name": "Default"}, "password": password}
    scope = {"project": {"name": project, "domain": {"name": "Default"}}}
    return login({"methods": ["password"], "password": {"user": user}}, scope)


def by_credential(made):
    one = {"id": made["id"], "secret": made["secret"]}
    return login({"methods": ["application_credential"], "application_credential": one})


def application(environ, start_response):
    seen = "|".join(
        environ.get(name, "")
        for name in ("HTTP_X_IDENTITY_STATUS", "HTTP_X_USER_NAME", "HTTP_X_PROJECT_NAME", "HTTP_X_ROLES")
    )
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [seen.encode()]


def service(**more):
    conf = {
        "www_authenticate_uri": AUTH_URL,
        "auth_type": "password",
        "auth_url": AUTH_URL,
        "username": "story-service",
        "password": "Pw-service-1",
        "user_domain_name": "Default",
        "project_name": "story-services",
        "project_domain_name": "Default",
        # Every request is asked about.
        "token_cache_time": "-1",
        # Of the catalog: rules are for services that are in it.
        "service_type": "key-manager",
    }
    if CA:
        conf["cafile"] = CA
    conf.update(more)
    wrapped = auth_token.AuthProtocol(application, conf)

    def ask(token=None, path="/v1/disks", method="GET"):
        request = webob.Request.blank(path, method=method)
        if token:
            request.headers["X-Auth-Token"] = token
        answer = request.get_response(wrapped)
        return answer.status_int, answer.text if answer.status_int == 200 else ""

    return ask


def main():
    admin = by_password("admin", PASSWORD, "admin")
    post = lambda path, body: call("POST", path, body, admin).json()
    role = {one["name"]: one["id"] for one in call("GET", "/roles", token=admin).json()["roles"]}
    project = post("/projects", {"project": {"name": "story", "domain_id": "default"}})["project"]["id"]
    services = post("/projects", {"project": {"name": "story-services", "domain_id": "default"}})["project"]["id"]
    ids = {}
    for user, password, place, given in (
        ("story-service", "Pw-service-1", services, "service"),
        ("story-user", "Pw-user-1", project, "member"),
    ):
        body = {"user": {"name": user, "password": password, "domain_id": "default"}}
        ids[user] = post("/users", body)["user"]["id"]
        call("PUT", f"/projects/{place}/users/{ids[user]}/roles/{role[given]}", token=admin)
    token = by_password("story-user", "Pw-user-1", "story")
    ask = service()
    status, seen = ask(token)
    expect((status, seen.split("|")[:3]), (200, ["Confirmed", "story-user", "story"]), "a good token")
    expect(sorted(seen.split("|")[3].split(",")), ["member", "reader"], "roles")
    for name, wrong in (("no token", None), ("rubbish", "gAAAA-rubbish"), ("cut", token[:-3])):
        expect(ask(wrong)[0], 401, name)
    lenient = service(delay_auth_decision="true")
    expect(lenient("gAAAA-rubbish")[1].split("|")[0], "Invalid", "a service that decides itself")
    # What an application credential may call is looked at by the middleware, with the rules from the validation.
    rules = [{"service": "key-manager", "method": "GET", "path": "/v1/disks/*"}]
    body = {"application_credential": {"name": "narrow", "access_rules": rules}}
    made = call("POST", f"/users/{ids['story-user']}/application_credentials", body, token).json()
    narrow = by_credential(made["application_credential"])
    expect(ask(narrow, "/v1/disks/one")[0], 200, "a call that the rules list")
    expect(ask(narrow, "/v1/disks/one", "DELETE")[0], 401, "another method")
    expect(ask(narrow, "/v1/secrets")[0], 401, "another path")
    expect(service(service_type="identity")(narrow, "/v1/disks/one")[0], 401, "another service")
    # What ends a token ends it here.
    other = by_password("story-user", "Pw-user-1", "story")
    headers = {"X-Auth-Token": admin, "X-Subject-Token": other}
    answer = requests.delete(AUTH_URL + "/auth/tokens", headers=headers, verify=VERIFY, timeout=60)
    expect(answer.status_code, 204, "revocation")
    expect(ask(other)[0], 401, "a revoked token")
    expect(ask(token)[0], 200, "the other token")
    call("PATCH", f"/users/{ids['story-user']}", {"user": {"enabled": False}}, admin)
    expect(ask(token)[0], 401, "a disabled user")


main()
