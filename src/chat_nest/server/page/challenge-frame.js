// The widget of Turnstile, hCaptcha or reCAPTCHA, in a frame of the page. It gives the page the token.

const SCRIPTS = {
  turnstile: "https://challenges.cloudflare.com/turnstile/v0/api.js?render=explicit&onload=ready",
  hcaptcha: "https://js.hcaptcha.com/1/api.js?render=explicit&onload=ready",
  recaptcha: "https://www.google.com/recaptcha/api.js?render=explicit&onload=ready",
};
const APIS = { turnstile: "turnstile", hcaptcha: "hcaptcha", recaptcha: "grecaptcha" };

const { kind, site_key: sitekey, action, data: cData, language } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const tell = (message) => parent.postMessage(message, location.origin);
const failed = () => tell({ failed: true });

globalThis.ready = () => {
  const options = { sitekey, action, cData, language, hl: language, callback: (solution) => tell({ solution }), "error-callback": failed };
  globalThis[APIS[kind]].render("widget", options);
};
new ResizeObserver(() => tell({ height: document.documentElement.scrollHeight })).observe(document.body);
const script = document.createElement("script");
script.src = `${SCRIPTS[kind]}&hl=${encodeURIComponent(language)}`;
script.onerror = failed;
document.head.append(script);
