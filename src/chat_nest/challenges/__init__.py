"""Challenges for visitors: proof of work, and the services Turnstile, hCaptcha and reCAPTCHA."""
