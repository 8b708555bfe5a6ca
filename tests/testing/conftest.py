"""What `test_kit.py` asks of hypothesis where a test is expected to fail."""

from hypothesis import Phase, settings

# That a mistake is found is all we want to know; looking for its smallest example takes anything from a second to five minutes.
settings.register_profile("found", phases=[Phase.explicit, Phase.generate])
