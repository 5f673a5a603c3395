"""Makes the tools beside this file importable by name in every test: `from scripted_provider import ScriptedProvider`."""
