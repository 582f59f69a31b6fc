element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('taken', { number: Number(button.dataset.example) });
});
