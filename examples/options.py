"""What the options of several scripts have in common."""

import argparse


SPLIT_BY = "What is held out: all images of a scene, such as door_1 and door_2, or each folder; or single images."


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Print every default, and the description as it is."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default == []:  # nothing to print
            return action.help or ""
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action) or ""
