// Mends what Gradio's parts lack for people who use a keyboard or a screen reader.
(() => {
  function mend() {
    // The accessible name of the upload area must have its visible text (WCAG 2.5.3).
    for (const button of document.querySelectorAll('#fs-picture button.upload-container')) {
      const text = button.innerText.replace(/\s+/g, ' ').trim();
      if (text && button.getAttribute('aria-label') !== text) button.setAttribute('aria-label', text);
    }
    for (const place of ['fs-banner', 'fs-answer', 'fs-reason', 'fs-kept']) {
      const element = document.getElementById(place);
      if (element && !element.hasAttribute('aria-live')) element.setAttribute('aria-live', 'polite');
    }
  }
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
})();
