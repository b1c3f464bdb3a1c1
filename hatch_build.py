"""Give the README on PyPI, where relative links lead nowhere, links to the repository that it is built from."""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Read `GITHUB_REPOSITORY` (`OWNER/NAME`), which GitHub Actions sets; without it, the README stays as it is."""

    def update(self, metadata: dict):
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            tag = f"v{metadata['version']}"

            def absolute(link: re.Match) -> str:
                image, text, path = link.groups()
                host = "raw.githubusercontent.com" if image else "github.com"
                folder = f"{repository}/{tag}" if image else f"{repository}/blob/{tag}"
                return f"{image}[{text}](https://{host}/{folder}/{path})"

            readme = RELATIVE_LINK.sub(absolute, readme)
            metadata["urls"] = {
                "Source": f"https://github.com/{repository}",
                "Changelog": f"https://github.com/{repository}/blob/{tag}/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
