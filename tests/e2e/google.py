"""The fake Google as a process of its own, and what a gateway's configuration says of it."""

import json
import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.e2e.gateway import GUNICORN, Server, _environment

EMAIL = "gateway@my-project.iam.gserviceaccount.com"
PROJECT = "my-project"
BUCKET = "my-bucket"


class GoogleUpstream(Server):
    """Vertex AI, Cloud Storage, Google's tokens and AI Studio on one address."""

    def __init__(self, log_dir: Path) -> None:
        super().__init__("google", log_dir)
        self.studio_key = f"AIza-{secrets.token_urlsafe(20)}"
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with self._listen() as listening:
            self._spawn(
                [
                    *(*GUNICORN, "--bind", f"fd://{listening.fileno()}", "--no-control-socket"),
                    *("--worker-class", "gthread", "--workers", "1", "--threads", "64"),
                    *("--timeout", "0", "--graceful-timeout", "1", "--log-level", "critical"),
                    "tests.google_fake.app:create()",
                ],
                _environment(
                    {
                        "FAKE_GOOGLE_PUBLIC_KEY": public.decode(),
                        "FAKE_GOOGLE_EMAIL": EMAIL,
                        "FAKE_GOOGLE_KEY": self.studio_key,
                    }
                ),
                listening,
            )
        self._wait_up()

    def _wait_up(self) -> None:
        # Any answer will do: the socket is there already, the application soon.
        self._api.post(f"{self.url}/_control", json={"of": "vertex"}, timeout=20)

    @cached_property
    def private_key(self) -> str:
        """The service account's, in PEM; a secret."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    @property
    def credentials(self) -> str:
        """The service account's file, as text."""
        return json.dumps(
            {
                "type": "service_account",
                "project_id": PROJECT,
                "private_key_id": "key-1",
                "private_key": self.private_key,
                "client_email": EMAIL,
                "client_id": "1",
                "token_uri": f"{self.url}/token",
            }
        )

    def vertex(
        self, model_name: str, model: str = "gemini-2.0-flash", **more: Any
    ) -> dict[str, Any]:
        """An entry of `model_list`."""
        return {
            "model_name": model_name,
            "litellm_params": {
                "model": f"vertex_ai/{model}",
                "vertex_project": PROJECT,
                "vertex_location": "us-central1",
                "vertex_credentials": self.credentials,
                "gcs_bucket_name": BUCKET,
                "api_base": self.url,
                "gcs_api_base": self.url,
                **more,
            },
        }

    def studio(
        self, model_name: str, model: str = "gemini-2.0-flash", **more: Any
    ) -> dict[str, Any]:
        """The same of AI Studio."""
        return {
            "model_name": model_name,
            "litellm_params": {
                "model": f"gemini/{model}",
                "api_key": self.studio_key,
                "api_base": self.url,
                **more,
            },
        }

    def control(self, of: str, **asked: Any) -> dict[str, Any]:
        """One call of the control API: what there is at `vertex` or `studio`."""
        body = {"of": of, **asked}
        answer = self._api.post(f"{self.url}/_control", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())
