#!/usr/bin/env python3
"""
Remove noise in GIMP 3: Filters > Enhance > Denoise with gdd adds a denoised layer on top of the image.

Copy this folder to the folder of plug-ins that GIMP names under Edit > Preferences > Folders, and make the file
executable. GIMP must find `gdd` on its PATH, and the system's Python before that of a virtual environment: a link to
`gdd` in ~/.local/bin will do.
"""

import subprocess
import sys
import tempfile

import gi


gi.require_version("Gimp", "3.0")
from gi.repository import Gimp, Gio, GLib  # noqa: E402


class Denoise(Gimp.PlugIn):
    def do_query_procedures(self):
        return ["python-fu-gdd-denoise"]

    def do_set_i18n(self, name):
        return False

    def do_create_procedure(self, name):
        procedure = Gimp.ImageProcedure.new(self, name, Gimp.PDBProcType.PLUGIN, self.run, None)
        procedure.set_image_types("RGB*, GRAY*")
        procedure.set_menu_label("Denoise with gdd")
        procedure.add_menu_path("<Image>/Filters/Enhance")
        return procedure

    def run(self, procedure, run_mode, image, drawables, config, data):
        quiet, status, error = Gimp.RunMode.NONINTERACTIVE, Gimp.PDBStatusType.SUCCESS, GLib.Error()
        with tempfile.TemporaryDirectory() as folder:
            noisy, denoised = (Gio.File.new_for_path(f"{folder}/{name}.tif") for name in ("noisy", "denoised"))
            Gimp.file_save(quiet, image, noisy, None)
            command = ["gdd", "denoise", noisy.get_path(), "--output", denoised.get_path()]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                status, error = Gimp.PDBStatusType.EXECUTION_ERROR, GLib.Error(run.stderr.strip())
            else:
                layer = Gimp.file_load_layer(quiet, image, denoised)
                layer.set_name("Denoised")
                image.insert_layer(layer, None, 0)
        return procedure.new_return_values(status, error)


Gimp.main(Denoise.__gtype__, sys.argv)
