// The widget of Turnstile, hCaptcha or reCAPTCHA, in a frame of the page. It gives the page the token. reCAPTCHA v3 has no
// checkbox: its token comes at once, and the frame shows its badge meanwhile.

const SCRIPTS = {
  turnstile: "https://challenges.cloudflare.com/turnstile/v0/api.js?render=explicit&onload=ready",
  hcaptcha: "https://js.hcaptcha.com/1/api.js?render=explicit&onload=ready",
  recaptcha: "https://www.google.com/recaptcha/api.js?render=explicit&onload=ready",
};
const APIS = { turnstile: "turnstile", hcaptcha: "hcaptcha", recaptcha: "grecaptcha" };

const { kind, site_key: sitekey, action, data: cData, checkbox = true, language } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const tell = (message) => parent.postMessage(message, location.origin);
const failed = () => tell({ failed: true });

const score = () => globalThis.grecaptcha.execute(sitekey, { action }).then((solution) => tell({ solution }), failed);
globalThis.ready = () => {
  if (!checkbox) return globalThis.grecaptcha.ready(score);
  const options = { sitekey, action, cData, language, hl: language, callback: (solution) => tell({ solution }), "error-callback": failed };
  globalThis[APIS[kind]].render("widget", options);
};
new ResizeObserver(() => tell({ height: document.documentElement.scrollHeight })).observe(document.body);
const script = document.createElement("script");
const url = checkbox ? SCRIPTS[kind] : SCRIPTS[kind].replace("render=explicit", `render=${encodeURIComponent(sitekey)}`);
script.src = `${url}&hl=${encodeURIComponent(language)}`;
script.onerror = failed;
document.head.append(script);
