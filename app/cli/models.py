"""`manifold models`: what a key may call."""

import click

from app.cli import remote
from app.client import Gateway


@click.command(epilog=remote.EPILOG)
@click.option("--deployments", is_flag=True, help="The accounts behind each of them.")
@remote.connected
def models(gateway: Gateway, deployments: bool, as_json: bool) -> None:
    """List the models that the key may use.

    \b
    manifold models
    manifold models --deployments
    """
    if not deployments:
        found = gateway.get("/v1/models")["data"]
        for model in found:
            if as_json:
                remote.show(model, as_json=True)
            else:
                click.echo(remote.plain(model["id"]))
        return
    rows = [
        {
            "model": entry["model_name"],
            "provider": entry["litellm_params"]["custom_llm_provider"],
            "upstream": entry["litellm_params"]["model"],
            "deployment": entry["model_info"]["id"],
        }
        for entry in gateway.get("/model/info")["data"]
    ]
    remote.table(rows, ("model", "provider", "upstream", "deployment"), as_json=as_json)
