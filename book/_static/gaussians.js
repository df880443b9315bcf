// The page "Two Gaussians to play with": closed forms only, no library, no request.
//
// base N(0, 1), expert N(1.5, 0.5^2); T steps of a linear schedule, t = 0 the least noise.
const Gaussians = (() => {
  const T = 100;
  const BETA = [1e-4, 0.12]; // first and last, linear in t
  const BASE = { mean: 0, deviation: 1 };
  const EXPERT = { mean: 1.5, deviation: 0.5 };

  const beta = (t) => BETA[0] + ((BETA[1] - BETA[0]) * t) / (T - 1);
  const alphaBar = [];
  for (let t = 0, left = 1; t < T; t++) alphaBar.push((left *= 1 - beta(t)));

  // A Gaussian after the noise of step t.
  const noised = ({ mean, deviation }, t) => ({
    mean: Math.sqrt(alphaBar[t]) * mean,
    deviation: Math.sqrt(alphaBar[t] * deviation ** 2 + 1 - alphaBar[t]),
  });
  const density = ({ mean, deviation }, x) =>
    Math.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * Math.sqrt(2 * Math.PI));
  const logDensity = ({ mean, deviation }, x) =>
    -(((x - mean) / deviation) ** 2) / 2 - Math.log(deviation) - Math.log(2 * Math.PI) / 2;
  const reward = (x, t) => logDensity(noised(EXPERT, t), x) - logDensity(noised(BASE, t), x);

  // base^(1 - w) expert^w, normalised: precisions and precision-weighted means are mixed.
  const product = (t, w) => {
    const [base, expert] = [noised(BASE, t), noised(EXPERT, t)];
    const [p, q] = [(1 - w) / base.deviation ** 2, w / expert.deviation ** 2];
    return p + q > 0
      ? { mean: (p * base.mean + q * expert.mean) / (p + q), deviation: (p + q) ** -0.5 }
      : null;
  };

  // What the base's sampler draws, its mean moved by w times the reward's gradient in every step:
  // each step is linear in x, so a Gaussian stays one and its moments are exact.
  const steered = (t, w) => {
    let [mean, variance] = [0, 1];
    for (let s = T - 1; s > t; s--) {
      const { mean: m, deviation: d } = product(s, w);
      const b = beta(s);
      mean = (mean - (b * (mean - m)) / d ** 2) / Math.sqrt(1 - b);
      variance = (variance * (1 - b / d ** 2) ** 2) / (1 - b) + b;
    }
    return { mean, deviation: Math.sqrt(variance) };
  };
  return { T, BASE, EXPERT, noised, density, reward, product, steered };
})();

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("gaussians");
  if (!place) return;
  const WIDTH = 640;
  const RANGE = [-4, 4.5];
  const xs = Array.from({ length: 281 }, (_, k) => RANGE[0] + ((RANGE[1] - RANGE[0]) * k) / 280);
  const across = (x) => ((x - RANGE[0]) / (RANGE[1] - RANGE[0])) * WIDTH;
  const curve = (f, height, low, high) =>
    xs
      .map((x, k) => {
        const y = height - ((Math.min(Math.max(f(x), low), high) - low) / (high - low)) * height;
        return `${k ? "L" : "M"}${across(x).toFixed(1)},${y.toFixed(1)}`;
      })
      .join("");
  const line = (name, style) => `<path data-of="${name}" fill="none" stroke-width="2.5" ${style}/>`;
  const ticks = [-3, -2, -1, 0, 1, 2, 3, 4]
    .map((x) => `<text x="${across(x)}" y="147" font-size="13" fill="currentColor" text-anchor="middle">${x}</text>`)
    .join("");
  place.innerHTML = `
    <p><label>noise, step t <input type="range" data-set="t" min="0" max="99" step="1" value="0"></label>
       <output data-of="t"></output></p>
    <p><label>guidance scale w <input type="range" data-set="w" min="0" max="3" step="0.1" value="1"></label>
       <output data-of="w"></output></p>
    <svg viewBox="0 0 ${WIDTH} 220" role="img" aria-label="Densities at step t of the base, the expert, the steered base and the product">
      ${line("base", 'stroke="#0072B2"')}${line("expert", 'stroke="#D55E00"')}
      ${line("product", 'stroke="currentColor" stroke-dasharray="2 5"')}
      ${line("steered", 'stroke="#009E73" stroke-dasharray="9 4"')}
    </svg>
    <svg viewBox="0 0 ${WIDTH} 150" role="img" aria-label="The relative reward at step t over x">
      <path d="M0,65H${WIDTH}" stroke="currentColor" stroke-width="0.6"/>${line("reward", 'stroke="#AA4499"')}${ticks}
    </svg>
    <table><thead><tr><th scope="col">at step t</th><th scope="col">mean</th><th scope="col">deviation</th></tr></thead>
    <tbody>
      <tr><th scope="row">base (solid blue)</th><td data-mean="base"></td><td data-deviation="base"></td></tr>
      <tr><th scope="row">expert (solid vermilion)</th><td data-mean="expert"></td><td data-deviation="expert"></td></tr>
      <tr><th scope="row">steered base (dashed green)</th><td data-mean="steered"></td><td data-deviation="steered"></td></tr>
      <tr><th scope="row">product of powers (dotted)</th><td data-mean="product"></td><td data-deviation="product"></td></tr>
    </tbody></table>`;
  const find = (choice) => place.querySelector(choice);
  const show = () => {
    const [t, w] = ["t", "w"].map((name) => Number(find(`[data-set=${name}]`).value));
    find("output[data-of=t]").textContent = `t = ${t}`;
    find("output[data-of=w]").textContent = `w = ${w.toFixed(1)}`;
    const found = {
      base: Gaussians.noised(Gaussians.BASE, t),
      expert: Gaussians.noised(Gaussians.EXPERT, t),
      steered: Gaussians.steered(t, w),
      product: Gaussians.product(t, w),
    };
    for (const [name, one] of Object.entries(found)) {
      find(`path[data-of=${name}]`).setAttribute("d", curve((x) => Gaussians.density(one, x), 220, 0, 1.5));
      find(`[data-mean=${name}]`).textContent = one.mean.toFixed(3);
      find(`[data-deviation=${name}]`).textContent = one.deviation.toFixed(3);
    }
    find("path[data-of=reward]").setAttribute("d", curve((x) => Gaussians.reward(x, t), 130, -8, 8));
  };
  place.addEventListener("input", show);
  show();
});
