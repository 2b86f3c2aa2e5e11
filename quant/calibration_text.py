"""The text that `--calibrate` runs through a model when no file is named: prose, talk, code, tables, other languages.

Written for this purpose.  What counts is variety: which channels of a layer carry large values shows after a thousand
tokens of nearly any mixture.
"""

from __future__ import annotations

TEXT = '''\
The harbour was quiet when Marta unlocked the boathouse. Fog lay over the water like wool, and somewhere behind it a bell
kept time for ships that nobody could see. She had promised her brother that the old engine would run again before the
autumn storms, and now it was the last week of September. "You are late," said the cat's eyes from the workbench, or so it
seemed to her. She laughed, hung up her coat, and began to sort the bolts by size.

Once upon a time there was a little fox who wanted to learn to swim. Every morning he sat by the pond and watched the
ducks. "It is easy," said the smallest duck. "You only have to forget that you can sink." The fox put one paw in the
water, and then another. It was cold! But he did not run away. By the evening he could paddle from one stone to the next,
and the frogs sang a song about him until the moon came up.

Photosynthesis turns light into chemical energy. In the first stage, pigments in the thylakoid membrane absorb photons and
split water, which gives oxygen, protons and electrons. In the second stage, the Calvin cycle uses ATP and NADPH to fix
carbon dioxide into sugars. A leaf converts only one to two percent of the light that falls on it; the rest is reflected,
passes through, or leaves as heat. Crops with the C4 pathway, such as maize and sugar cane, lose less to photorespiration.

The treaty of 1648 ended a war that had lasted thirty years. Historians disagree about how much of the later order of
sovereign states was really decided in those two towns in Westphalia, but few doubt that the exhausted negotiators wanted
above all to go home. Grain prices had tripled, whole villages stood empty, and the silver mines of the empire were either
flooded or pledged to bankers in Genoa and Augsburg.

def moving_average(values, window):
    """Return the mean of each run of `window` neighbouring values."""
    if window < 1:
        raise ValueError("window must be at least 1")
    total, result = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        if index >= window - 1:
            result.append(total / window)
    return result

#include <stdio.h>
int main(void) {
    for (int i = 1; i <= 15; ++i) {
        if (i % 15 == 0) printf("FizzBuzz\\n");
        else if (i % 5 == 0) printf("Buzz\\n");
        else if (i % 3 == 0) printf("Fizz\\n");
        else printf("%d\\n", i);
    }
    return 0;
}

SELECT customer.name, SUM(orders.total) AS spent
FROM customer JOIN orders ON orders.customer_id = customer.id
WHERE orders.placed_at >= '2024-01-01'
GROUP BY customer.name HAVING SUM(orders.total) > 100 ORDER BY spent DESC LIMIT 10;

{"name": "sensor-7", "online": true, "readings": [21.5, 21.7, 22.0], "location": {"lat": 52.52, "lon": 13.405}, "tags": []}

| planet  | radius (km) | moons |
|---------|-------------|-------|
| Mercury | 2,440       | 0     |
| Earth   | 6,371       | 1     |
| Jupiter | 69,911      | 95    |

User: My train leaves at 14:35 and the journey takes 2 hours and 50 minutes. When do I arrive?
Assistant: 14:35 plus 2 hours is 16:35, plus 50 minutes is 17:25. You arrive at 17:25.
User: And if it is twelve minutes late?
Assistant: Then you arrive at 17:37.

To solve 3x + 7 = 25, subtract 7 from both sides, which gives 3x = 18, and divide by 3, so x = 6. Check: 3 * 6 + 7 = 25.
The derivative of x^2 sin(x) is 2x sin(x) + x^2 cos(x). A fair die shows an even number with probability 1/2; two dice sum
to seven in 6 of 36 cases. If a train covers 240 km in 1.5 h, its mean speed is 160 km/h.

Ingredients: 500 g flour, 10 g salt, 7 g dry yeast, 320 ml lukewarm water, two spoons of olive oil. Mix, knead for ten
minutes, cover, and wait until the dough has doubled. Heat the oven to 230 degrees. Fold the dough twice, shape it, and
bake it for 35 minutes. The loaf is done when it sounds hollow.

Die Bibliothek schließt um acht, aber wer leise ist, darf länger bleiben. Am Fenster saß ein Mann und übersetzte Gedichte,
die niemand bestellt hatte. Le marché ouvre tôt le samedi : on y trouve des fraises, du fromage et des histoires. El río
crece en primavera y los niños cuentan los barcos desde el puente. Il treno per Bologna parte dal binario sette. 東京は夜も
明るく、電車は時間どおりに来る。今天天气很好。我们去公园散步吧。Москва далеко, но письмо придёт завтра.

Dear Ms. Okafor, thank you for your message of 3 March. We have checked your invoice (no. 20417) and found that the
discount of 15 % was not applied. A corrected invoice for EUR 1,284.60 is attached. Please accept our apologies; the
amount is due within 30 days. Kind regards, The Accounts Team

The patient reports intermittent chest tightness on exertion for two weeks, no pain at rest, no known allergies. Blood
pressure 142/88, pulse 76, regular. ECG without acute changes. Plan: laboratory tests, stress echocardiography, review of
medication. Section 12(3) shall not apply where the tenant has given notice in writing at least three months before the
end of the term, unless the parties have agreed otherwise.

"Is anybody there?" whispered Tom. The stairs creaked. A thin light moved under the door, stopped, and went out. He counted
to ten; then to twenty. Nothing. Slowly, with his hand on the wall, he walked towards the kitchen, where the clock said
half past three and the window stood open to the rain.

How do vaccines work? They show the immune system a harmless part of a germ, so that it can prepare antibodies and memory
cells. When the real germ comes, the answer is fast. Why is the sky blue? Air scatters short waves more than long ones. What
is the capital of Australia? Canberra, not Sydney. Who wrote Faust? Goethe. How many legs has a spider? Eight.

#!/bin/sh
set -eu
for file in *.log; do
    [ -e "$file" ] || continue
    gzip -9 "$file" && echo "compressed $file"
done

function debounce(callback, delay = 250) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...args), delay);
  };
}

1. Choose a quiet place. 2. Set a timer for ten minutes. 3. Breathe in for four seconds, hold for four, breathe out for six.
4. When your thoughts wander, bring them back. 5. Stop when the timer rings, and stand up slowly.

The market fell 2.3 % on Tuesday after the central bank left its rate at 4.25 % and lowered its forecast for growth from
1.8 % to 1.1 %. Bonds rose, the euro slipped to $1.07, and oil closed at $81.40 a barrel. Analysts at three banks expect a
cut in June; two others say that inflation in services, still at 4.0 %, leaves no room for it before the autumn.
'''
