"""One sentence in many scripts: the ferry leaves at seven."""

from __future__ import annotations

SCRIPTS = {
    "latin": "The ferry leaves at seven; don't be late!",
    "latin with marks": "Le vieux traversier s'élance à sept heures : où es-tu, garçon ?",
    "latin decomposed": "Die Fa\u0308hre legt um sieben ab, nai\u0308f und pu\u0308nktlich.",
    "greek": "Το καράβι φεύγει στις επτά το πρωί.",
    "cyrillic": "Паром уходит в семь часов утра.",
    "armenian": "Նավը մեկնում է առավոտյան ժամը յոթին։",
    "georgian": "გემი დილის შვიდ საათზე გადის.",
    "hebrew": "הספינה יוצאת בשבע בבוקר.",
    "arabic": "تغادر السفينة في السابعة صباحًا.",
    "devanagari": "नाव सुबह सात बजे चलती है।",
    "bengali": "নৌকা সকাল সাতটায় ছাড়ে।",
    "tamil": "படகு காலை ஏழு மணிக்கு புறப்படும்.",
    "telugu": "పడవ ఉదయం ఏడు గంటలకు బయలుదేరుతుంది.",
    "thai": "เรือออกตอนเจ็ดโมงเช้า",
    "lao": "ເຮືອອອກເວລາເຈັດໂມງເຊົ້າ",
    "burmese": "လှေသည် မနက် ခုနစ်နာရီတွင် ထွက်သည်။",
    "khmer": "ទូកចេញដំណើរនៅម៉ោងប្រាំពីរព្រឹក។",
    "tibetan": "གྲུ་གཟིངས་ཞོགས་པའི་ཆུ་ཚོད་བདུན་པར་ཐོན་གྱི་ཡོད།",
    "ethiopic": "መርከቡ ጠዋት በአንድ ሰዓት ይነሳል።",
    "hangul": "배는 아침 일곱 시에 떠납니다.",
    "kana": "ふねは あさ しちじに でます。フェリーです。",
    "han": "渡船早上七點開，别迟到。𠀋",
    "emoji": "⛴️ 7:00 👩‍✈️👨‍👩‍👧‍👦 🏴‍☠️ 👍🏽 🇬🇷",
}
