// What is kept for this tab only, such as a key: it ends with the tab, or with the page if storage is forbidden.

/** @param {string} name @returns {{get: () => string, set: (value: string) => void}} an empty value is forgotten */
export function keptForTab(name) {
  let inMemory = "";
  return {
    get() {
      try {
        return sessionStorage.getItem(name) ?? "";
      } catch {
        return inMemory;
      }
    },
    set(value) {
      inMemory = value;
      try {
        if (value) sessionStorage.setItem(name, value);
        else sessionStorage.removeItem(name);
      } catch {
        // Storage is forbidden here.
      }
    },
  };
}
