"""`phivision pull`: an exported assistant from the hub, in a folder."""

from pathlib import Path

from pipeline.hub.pull import pull


def pull_to(address: str, target: Path) -> str:
    """Fetch an assistant into a folder, and return what was done, in words.

    Raises:
        PipelineError, StorageError: As `pipeline.hub.pull.pull`.
    """
    done = pull(address, target)
    did = "holds" if not done.was_there else "holds already"
    lines = [
        f"{target} {did} {done.title}: {done.files} files, {done.bytes / 2**20:,.1f} MB, all "
        "verified by SHA-256"
    ]
    if done.left_out:
        lines.append(f"not fetched, since SHA256SUMS does not name it: {', '.join(done.left_out)}")
    if (target / "bundle.json").is_file():
        lines.append(f'phivision ask --bundle {target} photo.jpg "What is in the image?"')
    return "\n".join(lines)
