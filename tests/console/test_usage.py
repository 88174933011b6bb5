"""The overview: what the gateway has counted, shown to whom it concerns."""

from app.services.callers import operator
from tests.access_builders import issue
from tests.console.conftest import signed_in


def test_the_gateway_counts_what_goes_through_it(gateway, alice, bob):
    """By the API and by the console; pages that are only looked at do not count."""
    with alice.send(b"12345", target_model_names=["a", "b"]) as sent:
        file = sent.headers["Location"].rpartition("/")[2]
    bob.get(f"/ui/files/{file}/content").close()
    alice.get(f"/ui/files/{file}/content").close()
    key = {"Authorization": f"Bearer {issue(gateway.access, 'carol')}"}
    client = gateway.app.test_client()
    client.get("/v1/models", headers=key).close()
    client.get("/v1/files/file-unknown", headers=key).close()
    client.get("/v1/models").close()
    usage = gateway.app.extensions["manifold"].usage
    usage.flush()
    found = dict(usage.busiest(operator(), 1, "owner"))
    assert {owner: (c["requests"], c["errors"]) for owner, c in found.items()} == {
        "user:alice": (2, 0),
        "user:carol": (2, 1),
    }
    assert found["user:alice"]["bytes_in"] == 5 and found["user:alice"]["bytes_out"] >= 5
    models = {name: c["requests"] for name, c in usage.busiest(operator(), 1, "model")}
    assert models == {"a": 2, "b": 1} or models == {"a": 1, "b": 2}


def test_the_overview_shows_ones_own_and_everybodys_to_administrators(gateway, alice, bob, root):
    alice.send(b"x" * 2048, "only-alice.txt").close()
    usage = gateway.app.extensions["manifold"].usage
    usage.flush()
    mine, his, all_ = (b.get("/ui/overview").text for b in (alice, bob, root))
    assert "2 KB" in mine and "2 KB" in all_ and "2 KB" not in his
    assert "Requests by user" in all_ and "alice" in all_
    assert "Requests by user" not in mine and "alice" not in his
    for span in ("24h", "7d", "30d", "nonsense"):
        assert alice.get(f"/ui/overview?span={span}").status_code == 200
    fresh = signed_in(gateway, "fresh").get("/ui/overview").text
    assert fresh.count("Nothing yet in this time.") == 3
