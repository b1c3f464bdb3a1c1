"""The page of `gdd demo` as a Hugging Face Space; README.md says what to upload beside it."""

from gdd_diffusers.app.demo import launch


launch(host="0.0.0.0")
