"""Finds shares that are too large to be true."""

# A share of a limit above this number means that the limit was measured wrong.
MOST_SHARE = 1.03


def excesses(records, has_amx):
  """Returns a line for each share that is above MOST_SHARE. The FMA peak does
  not limit products of 16-bit numbers, and no products on AMX."""
  return [f'{name}, {r["label"]}: {share:.2f} of {r["limit"]}'
          for r in records for name, share in r['shares'].items()
          if share > MOST_SHARE and
          (r['limit'] == 'stream' or (r['dtype'] == 'f32' and not has_amx))]
