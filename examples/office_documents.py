"""Writes the Word and PDF files of the sample folder from the text below: `python examples/office_documents.py`.

The files are committed; this script is kept so that their content can be read and changed as text. It writes the PDF by
hand (one font, no compression), which keeps it free of further packages. Knows nothing about ssd2.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from docx import Document

FOLDER = Path(__file__).resolve().parent / "harbour-and-pine"

WARRANTY = """
# Warranty and care

Harbour & Pine, edition of January 2026. One copy lies in every boat, in the bag with the bung.

## What we promise

For seven years from the day of hand-over we make good, free of charge, whatever fails in the hull because of our work
or our material: planks, joints, frames, transom. For the finish, paint or varnish, the time is eighteen months. For
sails, covers and bronze the makers' own terms hold, and we take up the matter for you.

The promise belongs to the boat and not to the buyer. If you sell her, send us a card with her number and the new
owner's name, and it goes with her.

## What we do not promise

Varnish lives on attention. A boat that stays outside uncovered for more than ten weeks a year needs a new coat every
spring, and if she does not get one the warranty on the finish ends. Damage from trestles, trailers, ice, sons-in-law
and jetties is not ours, but we repair it gladly.

Racing is permitted. Motors above 2.5 horse-power end the warranty on the transom.

## Care through the year

In spring, wash with fresh water and a little soft soap, and look along every seam with a lamp. A scratch which shows
pale wood is touched up within the month; the small bottle in the bag is from the very tin with which she was
finished.

In summer, keep a finger's depth of water out of her rather than in. Leathers want tallow, not oil.

In autumn, take her ashore before the first frost. Bung out, bow up, on two trestles padded with carpet. Air must pass
beneath the cover: two fists at each end.

In winter, leave her alone. A heated garage is the worst place there is; a draughty barn the best.

## Once a free look

In her third year we look over every boat without charge, if she is brought to Pier 9 between October and March. Ask
Billie Strand for a date, on extension 31. About half of our owners come, and most of them stay for soup.
"""

BRIEF = """
# Turnstone: the brief for the brochure

From Ines Harrowgate to Leonie Abara, 9 December 2025. Please do not make her sound like a sports car.

## For whom

Two people who row together and have somewhere to be. Couples, sisters, a mother and a son of sixteen. They have
rented a Curlew twice and asked why it does not go faster.

## The facts

Length 5.84 metres, beam 1.05 at the gunwale, 0.82 at the waterline. Ready to row she weighs 43.6 kilograms. Five
strakes of five-millimetre plywood over bulkheads, outriggers of laminated ash that fold inwards for the slip, bronze
plates by Pascoe. Two sliding seats on rails of anodised aluminium, the only metal in her besides bronze.

Buoyancy bags of 60 litres at bow and stern. Swamped with both aboard she floats level and can be rowed, slowly, to
the bank.

She makes 5.2 knots at an effort that lets you talk in short sentences. The prototype went from Kelderwick to the
Outer Farrows in the third week of September, 23 sea miles, in five hours and ten minutes, with a stop for eggs.

## The names of things

The colour in the photographs is Kelp, number 17 on the card. It is new, and Desmond mixed it to go with the seaweed
on the ice house wall. The other choices at launch are Gull White and Brick. There is no black. There will be no
black.

## What to say about the capsize

That it was tried. Twelve times on purpose and not once by accident. That the drawing in the leaflet shows where to
take hold. Agnes will pose for the drawing if she may keep her hat.

## Photographs

At the red buoy, early, before the ferry at ten past seven. Hamish takes you out in the launch. Rowers: Pernille and
Rafi. No drone; the terns are nesting from April and the warden is Hamish's aunt.
"""

SURVEY = """
MUTUAL OF SKARNE - SURVEY OF PREMISES

Insured: Harbour & Pine Boatworks, Tarr Street, Kelderwick. Policy HM-20947-C.

Surveyor: Bertram Osgood. Date of visit: 20 November 2025. Accompanied by: Ms A. Tolliver.

SUMMARY

Two premises were seen. The Old Ropewalk is a brick building of 1874, 96 metres long and 11 wide, under slate, with
timber floors in the north third. Pier 9 is a timber pier with a kiosk, a rack and a storage shed of corrugated steel.
Housekeeping is better than I am used to in the trade. The workshop is tidy. The fire of June 2025 was confined by a
closed door and a caretaker of unusual presence of mind.

SUMS AT RISK

Building, Ropewalk: 1,480,000 pounds. Machinery and booth: 312,000. Stock, timber and boats under construction:
365,000 on the day, of which customers' boats 128,000. Shed at Pier 9: contents belong to owners and are not covered.

REQUIREMENTS

1. The extinguishers numbered 4 and 5 have been refilled; the labels should show it.

2. The door between planking and finishing, which saved the roof, closes by hand. Fit a closer with a fusible link or
a magnet tied to the detector. By the end of April 2026.

3. The cupboard of the small compressor needs a vent of at least 300 square centimetres.

4. Paint locker: in order. The hook in the key cabinet should not be labelled "paint locker".

5. The wiring in the Crow's Nest is of about 1970, in rubber. It is to be renewed from the board upwards, by a
registered electrician. By the end of April 2026.

6. Recommended, not required: a second hydrant connection on the river side. The brigade's hose from Tarr Street
reaches the finishing bay with four metres to spare, and the bay is where it burned.

REMARKS

The sheet for the emptying of the dust bins was complete for every working day since the first of July. I checked it
against the holiday list; it was not filled in afterwards.

A cat was seen on the premises. It is not a requirement that she be removed.

I was offered soup.

Signed: B. Osgood, Ullermouth, 24 November 2025.
"""


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each on one line."""
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def write_docx(text: str, path: Path) -> None:
    """A Word file: lines that begin with # are headings, the rest paragraphs."""
    document = Document()
    for part in paragraphs(text):
        if part.startswith("#"):
            mark, _, title = part.partition(" ")
            document.add_heading(title, level=len(mark))
        else:
            document.add_paragraph(part)
    document.save(str(path))


def pdf_pages(text: str, width: int = 88, height: int = 52) -> list[list[str]]:
    """Lines of text by page."""
    lines: list[str] = []
    for part in paragraphs(text):
        lines += [*textwrap.wrap(part, width), ""]
    return [lines[i : i + height] for i in range(0, len(lines), height)]


def write_pdf(text: str, path: Path) -> None:
    """A plain PDF 1.4 in Helvetica, one text object a page. The text must be Latin-1."""
    pages = pdf_pages(text)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, lines in enumerate(pages):
        shown = "".join(f"({escape(line)}) Tj T*\n" for line in lines)
        stream = f"BT /F1 10.5 Tf 13.5 TL 60 780 Td\n{shown}ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream.encode('latin-1'))} >>\nstream\n{stream}\nendstream")
    path.write_bytes(assemble(objects))


def escape(line: str) -> str:
    """A line as it stands inside the brackets of a PDF string."""
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def assemble(objects: list[str]) -> bytes:
    """The file: header, numbered objects, cross-reference table, trailer."""
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += "".join(f"{offset:010d} 00000 n \n" for offset in offsets).encode()
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def main() -> int:
    """Writes the three files."""
    write_docx(WARRANTY, FOLDER / "products" / "warranty-and-care.docx")
    write_docx(BRIEF, FOLDER / "products" / "turnstone-brochure-brief.docx")
    write_pdf(SURVEY, FOLDER / "reports" / "insurance-survey-2025.pdf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
