"""The streaming chat endpoint that you can put on the public internet with your own API key behind it."""
