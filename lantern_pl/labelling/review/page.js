// The keys of the review page, and what a new pair resets. Buttons do all the work: a key presses one.
(() => {
  const find = (selector) => document.querySelector(selector);
  const BUTTONS = { a: "#accept", r: "#reject", n: "#next", p: "#previous" };
  const FIELDS = { e: "#explanation textarea", m: "#note textarea, #note input" };
  const DECIDING = ["#accept", "#reject"];
  // Milliseconds until a key counts again where no answer comes, and until a pair can have been looked at: what was
  // pressed twice mustn't decide a pair that nobody has seen.
  const PATIENCE = 3000, GLANCE = 300;
  let waitingSince = 0, shownAt = 0;

  const isTyping = (element) =>
    element.isContentEditable || element.tagName === "TEXTAREA" || (element.tagName === "INPUT" && element.type !== "radio");

  // One decision a pair: what is pressed before the next one is there is dropped.
  function press(selector) {
    const button = find(selector);
    if (!button || button.disabled || Date.now() - waitingSince < PATIENCE) return;
    if (find(".review.done") && selector !== BUTTONS.p) return;
    if (DECIDING.includes(selector) && Date.now() - shownAt < GLANCE) return;
    waitingSince = Date.now();
    button.click();
  }

  function focus(selector) {
    const field = find(selector);
    if (!field || find(".review.done")) return;
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      document.activeElement.blur();
      return press(BUTTONS.a);
    }
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (key in BUTTONS) press(BUTTONS[key]);
    else if (key in FIELDS) focus(FIELDS[key]);
    else if (/^[1-9]$/.test(key)) document.querySelectorAll("#level input[type=radio]")[key - 1]?.click();
    else return;
    event.preventDefault();
  }, true);

  document.addEventListener("click", (event) => {
    const line = event.target.closest?.(".review li[data-quote]");
    if (event.target.closest?.("#edit")) focus(FIELDS.e);
    if (!line) return;
    document.querySelectorAll(".review mark.pointed").forEach((mark) => mark.classList.remove("pointed"));
    const marks = [...document.querySelectorAll(".review mark")].filter((mark) => mark.dataset.quotes.split(" ").includes(line.dataset.quote));
    marks.forEach((mark) => mark.classList.add("pointed"));
    marks[0]?.scrollIntoView({ block: "center" }); // at once: a scroll under way would go on into the next pair
  });

  document.addEventListener("click", (event) => {
    if (event.detail > 1 && event.target.closest?.(DECIDING.join())) event.stopPropagation();
  }, true);

  // Whether the form says something else than the label.
  function compare() {
    const review = find(".review[data-pair]");
    const words = (text) => text.split(/\s+/).filter(Boolean).join(" ");
    const level = find("#level input[type=radio]:checked");
    const explanation = find("#explanation textarea");
    const changed = review && level && explanation
      && (level.value !== review.dataset.level || words(explanation.value) !== words(review.dataset.explanation));
    document.body.classList.toggle("changed", Boolean(changed));
  }
  for (const kind of ["input", "change"]) document.addEventListener(kind, () => setTimeout(compare));

  let turn;
  new MutationObserver(() => {
    const now = find(".review")?.dataset.turn;
    if (now === turn || now === undefined) return;
    turn = now;
    waitingSince = 0;
    shownAt = Date.now();
    document.querySelectorAll(".review .scroll").forEach((pane) => { pane.scrollTop = 0; });
    document.querySelectorAll(".review mark.pointed").forEach((mark) => mark.classList.remove("pointed"));
    setTimeout(compare, 50); // the form follows a moment after
  }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-turn"] });
})();
