"""`perdure demo resume`: a training is killed again and again, and ends with the same bits as one that was left alone.

`training` is what a user would write. `program` starts and kills it, `outcome` looks at what it left, `report` tells the story.
"""
