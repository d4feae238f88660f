"""What `flows.serve` serves is for this machine: no other host, no other origin, no one unknown."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from flows import publish, servers

HERE = "http://127.0.0.1:4200"
ELSEWHERE = "http://evil.example:4200"


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", f"{HERE}/api")
    (tmp_path / "data/report").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("base", "status"), [(HERE, 200), (ELSEWHERE, 400)])
def test_the_report_is_shown_to_who_asks_for_this_machine(here, base, status):
    (here / "page.html").write_text("r1", encoding="utf-8")
    (here / "data/report/index.html").symlink_to(here / "page.html")  # as DVC does it
    assert TestClient(servers.report_server(), base_url=base).get("/").status_code == status


def test_a_report_that_is_not_there_yet_is_a_page_that_is_not_there(here):
    client = TestClient(servers.report_server(), base_url=HERE)
    assert client.get("/").status_code == 404
    assert client.get("/../page.html").status_code == 404


def test_prefect_is_not_asked_by_another_name(here):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefect.server.api.server.create_app", lambda: servers.report_server())
        client = TestClient(servers.prefect_server(), base_url=ELSEWHERE)
    assert client.get("/").text == "Invalid host header"


def test_a_deployment_publishes_where_prefect_yaml_says_alone(here):
    deployments = "deployments:\n- {name: a}\n- {name: b, parameters: {publish_to: 's3://shelf'}}\n"
    (here / "prefect.yaml").write_text(deployments, encoding="utf-8")
    publish.refuse_elsewhere("s3://shelf")
    for elsewhere in ("s3://shelf/..", "/tmp", ""):
        with pytest.raises(ValueError, match=r"No deployment in prefect.yaml publishes to"):
            publish.refuse_elsewhere(elsewhere)


def test_no_deployment_takes_a_round_that_is_not_accepted():
    assert publish.publish_round.parameters.properties.keys() == {"name", "publish_to"}
