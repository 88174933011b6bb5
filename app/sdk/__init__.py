"""Files, batches and fine-tuning jobs at a provider, from Python and without a server.

The names are those that LiteLLM's library has, in both spellings: `alist_files` and `afile_list`.
Each function has a form with an `a` in front for asyncio. docs/sdk.md shows them.
"""

from app.errors import ConfigError, GatewayError
from app.sdk.batches import (
    acancel_batch,
    acreate_batch,
    alist_batches,
    aretrieve_batch,
    cancel_batch,
    create_batch,
    list_batches,
    retrieve_batch,
)
from app.sdk.files import (
    acreate_file,
    adelete_file,
    afile_content,
    afile_delete,
    afile_list,
    afile_retrieve,
    alist_files,
    aretrieve_file,
    create_file,
    delete_file,
    file_content,
    file_delete,
    file_list,
    file_retrieve,
    list_files,
    retrieve_file,
)
from app.sdk.fine_tuning import (
    acancel_fine_tuning_job,
    acreate_fine_tuning_job,
    alist_fine_tuning_jobs,
    aretrieve_fine_tuning_job,
    cancel_fine_tuning_job,
    create_fine_tuning_job,
    list_fine_tuning_jobs,
    retrieve_fine_tuning_job,
)
from app.sdk.objects import Batch, FileContent, FileDeleted, FileObject, FineTuningJob, Page

__all__ = [
    "Batch",
    "ConfigError",
    "FileContent",
    "FileDeleted",
    "FileObject",
    "FineTuningJob",
    "GatewayError",
    "Page",
    "acancel_batch",
    "acancel_fine_tuning_job",
    "acreate_batch",
    "acreate_file",
    "acreate_fine_tuning_job",
    "adelete_file",
    "afile_content",
    "afile_delete",
    "afile_list",
    "afile_retrieve",
    "alist_batches",
    "alist_files",
    "alist_fine_tuning_jobs",
    "aretrieve_batch",
    "aretrieve_file",
    "aretrieve_fine_tuning_job",
    "cancel_batch",
    "cancel_fine_tuning_job",
    "create_batch",
    "create_file",
    "create_fine_tuning_job",
    "delete_file",
    "file_content",
    "file_delete",
    "file_list",
    "file_retrieve",
    "list_batches",
    "list_files",
    "list_fine_tuning_jobs",
    "retrieve_batch",
    "retrieve_file",
    "retrieve_fine_tuning_job",
]
