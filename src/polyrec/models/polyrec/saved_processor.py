"""Processors on disk and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import CommitInfo
from safetensors import SafetensorError

from polyrec.data import processor_files
from polyrec.data.report import DataReport
from polyrec.data.training_rows import TrainingSetSketch
from polyrec.data.trends import Trends
from polyrec.hub.fetch import fetch
from polyrec.hub.files import PROCESSOR_FILES, PROCESSOR_RECORDED
from polyrec.hub.push import push
from polyrec.hub.safety import check_processor, record_saved
from polyrec.models.polyrec.fitted_processor import FittedProcessor


class SavedProcessor(FittedProcessor):
    """A processor that is saved beside the model and loaded with it."""

    def save_pretrained(self, folder: str | Path, include_users: bool = False, **unused: Any) -> None:
        """Write processor_config.json, items.parquet, statistics/, item_vectors/ and two files that never leave:
        training_rows.safetensors, see [`TrainingSetSketch`], and stored_events.parquet.

        Those two are all that is about users, who are in them as salted hashes. stored_events.parquet holds what each
        of them did, so that requests may give a `user_id`; set `stored_events` to None to leave it out. The
        folder's manifest.json gets the digests of all files, which [`from_pretrained`] checks.

        Args:
            include_users: write the attributes of users, too (users.parquet), row by row.
        """
        self._write(Path(folder), include_users)
        record_saved(folder, PROCESSOR_RECORDED)

    def _write(self, folder: Path, include_users: bool) -> None:
        processor_files.save(
            folder,
            columns=self.columns,
            tasks=self.tasks,
            items=self.items,
            users=self.users,
            event_encoders=self.event_encoders,
            item_counts=self.item_counts,
            first_event=self.first_event,
            statistics=self.statistics,
            text=self.text,
            tokenizer=self.tokenizer,
            max_history=self.max_history,
            ties=self.ties,
            label_summary=self.label_summary,
            log_columns=self.log_columns,
            training_rows=None if self.training_rows is None else self.training_rows.arrays(),
            data_report=None if self.data_report is None else self.data_report.to_dict(),
            stored_events=self.stored_events,
            recent=self.trends.recent,
            include_users=include_users,
        )

    def push_to_hub(self, repo_id: str, *, include_users: bool = False, **options: Any) -> CommitInfo:
        """Share the processor in one commit; `model.push_to_hub(repo_id, processor=processor)` shares both in one.

        Args:
            repo_id: user/name.
            include_users: share the attributes of users, too; warns with their columns.
            options: see [`~polyrec.hub.push.push_folder`].
        """
        return push(repo_id, self, include_users=include_users, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **hub_options: Any) -> Self:
        """Load what [`save_pretrained`] wrote, from a folder or a Hub repository.

        Args:
            hub_options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ValueError: a file is missing, truncated, newer than this version or not one that polyrec writes, with its
                name and the fix.
            OSError: the Hub refused, with what mends it.
        """
        for name in ("_from_auto", "trust_remote_code"):  # of AutoProcessor; code of a repository is never run
            hub_options.pop(name, None)
        local = fetch(folder, PROCESSOR_FILES, **hub_options)
        check_processor(local)
        try:
            return cls._read(local)
        except (LookupError, TypeError, AttributeError, AssertionError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"{local}: the processor's files do not fit each other ({type(error).__name__}: {error}): they are "
                "damaged or of different runs; restore the folder from a copy"
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> Self:
        found = processor_files.load(folder)
        item_counts, label_summary = found.pop("item_counts"), found.pop("label_summary")
        sketch = found.pop("training_rows")
        log_columns = found.pop("log_columns")
        first_event, report = found.pop("first_event"), found.pop("data_report")
        stored, recent = found.pop("stored_events"), found.pop("recent")
        processor = cls(**found)
        processor.item_counts, processor.label_summary = item_counts, label_summary
        processor.training_rows = None if sketch is None else TrainingSetSketch.from_arrays(sketch)
        processor.first_event, processor.log_columns = first_event, log_columns
        processor.data_report = None if report is None else DataReport.from_dict(report)
        processor.stored_events = stored
        processor._saved_mixtures = processor.mixtures
        processor.trends = Trends(processor.mixtures, processor.num_items, recent)
        return processor
