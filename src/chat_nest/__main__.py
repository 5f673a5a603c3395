"""`python -m chat_nest`: the command chat-nest."""

from chat_nest.cli.main import main

if __name__ == "__main__":
    main()
