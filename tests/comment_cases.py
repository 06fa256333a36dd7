"""How people write what a job asks for, as plain data: comments, and what each is taken for.

Two parsers answer to it: `hpcimg.slurm.comment` on the node and `etc/hpcimg.lua` at
submission.
"""

U = "docker://ubuntu:22.04"
_LEFT, _RIGHT = "\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}"

# Comment, and the images as NAME=REFERENCE or REFERENCE.
ASKS: list[tuple[str, list[str]]] = [
    # quotes that a shell or sbatch left
    (f'"container:{U}"', [U]),
    (f"'container:{U}'", [U]),
    (f'container:"{U}"', [U]),
    (f"container:'{U}' words", [U]),
    (f'container:tool="{U}"', [f"tool={U}"]),
    (f'"container:{U} container:/a.sif"', [U, "/a.sif"]),
    (f"`container:{U}`", [U]),
    (f'\\"container:{U}\\"', [U]),
    (f"{_LEFT}container:{U}{_RIGHT}", [U]),
    (f"{_LEFT}container{_RIGHT}:{_LEFT}{U}{_RIGHT}", [U]),
    # other words of a site, with commas
    (f"a=1,container:{U}", [U]),
    (f'a=1,"container:{U}"', [U]),
    (f"container:{U},container:/a.sif", [U, "/a.sif"]),
    (f"container:{U}, container:/a.sif,", [U, "/a.sif"]),
    (f"a|container:{U}&b", [f"{U}&b"]),
    (f"(container:{U})", [U]),
    (f"[container:{U} container:/data/(1).sif]", [U, "/data/(1).sif"]),
    ("container:/data/x,container.sif", ["/data/x,container.sif"]),
    # another case, another sign, a blank
    (f"Container:{U}", [U]),
    (f"CONTAINER:{U}", [U]),
    ("CONTAINER:Tool=/A.sif", ["Tool=/A.sif"]),
    (f"container={U}", [U]),
    (f"Container=tool={U}", [f"tool={U}"]),
    (f"container: {U}", [U]),
    (f"container:\t{U} words", [U]),
    (f"container = {U}", [U]),
    (f"container : tool={U}", [f"tool={U}"]),
    (f"Container: {U}", [U]),
    ("container: ubuntu:22.04", ["ubuntu:22.04"]),
    ("container: /data/x.sif container:x=/y.sif", ["/data/x.sif", "x=/y.sif"]),
    ("Container:ubuntu", ["ubuntu"]),
    ("container=ubuntu", ["ubuntu"]),
    # followed by nothing that could be meant: refused as such
    ("container:", [""]),
    ("container: samtools", [""]),
    # JSON that a shell took apart, and what Python prints
    (f"{{container:{U}}}", [U]),
    (f"{{'container': '{U}', 'wpps': 3}}", [U]),
    (f"{{'a': 1,'container':'{U}'}}", [U]),
    (f'{{"container": "{U}"', [U]),
    (f'["container:{U}"]', [U]),
    (f"{{'container': ['{U}']}}", [U]),
    (f"{{'container':['{U}']}}", [U]),
    # JSON
    (f'{{"container": "{U}"}}', [U]),
    (f' {{"wpps":{{"a":[1,2.5e3,null,true]}},"container":"{U}"}} ', [U]),
    (f'{{"container":["{U}","tool=/a.sif"]}}', [U, "tool=/a.sif"]),
    (f'{{"container":{{"a":"{U}","b":"/b.sif"}}}}', [f"a={U}", "b=/b.sif"]),
    (f'{{"container":{{"my-tool":"{U}"}}}}', [f"my-tool={U}"]),
    (f'{{"Container":"{U}"}}', [U]),
    (f'{{"container":"container:{U}"}}', [U]),
    (f'{{"container":"x={U} container:/b.sif;/c.sif"}}', [f"x={U}", "/b.sif", "/c.sif"]),
    ('{"container":"docker:\\/\\/ubuntu"}', ["docker://ubuntu"]),
    ('{"container":"/\\u0061.sif"}', ["/a.sif"]),
    ('{"container":"/a.sif","container":"/b.sif"}', ["/a.sif", "/b.sif"]),
    (f'{{"note":"two words container:{U}"}}', [U]),
    ('{"container":""}', [""]),
    ('{"container":"ubuntu"}', ["ubuntu"]),
    ('{"container":{"":"/a.sif"}}', ["/a.sif"]),
]

# Comments of which nothing is ours.
INNOCENT: list[str] = [
    "container test run",
    "a container, two containers and a Container.",
    "see container:?",
    "in a container :-)",
    "container = 5",
    "New Container: test of the GPU",
    "docs at https://example.org/container:x",
    "containers: x:container:x",
    "acontainer:x",
    "mycontainer:/a.sif",
    "container /a.sif",
    "containerd:1.7",
    "counter:/a.sif contained:/b.sif retainer=/c.sif",
    "container-test=yes",
    "container/x",
    "see https://hub.example.org/?image=docker://ubuntu",
    "image:ubuntu input=/data/x.sif data:s3://bucket/x",
    "10:30 container",
    '{"container":null}',
    '{"container":[]}',
    '{"container":{}}',
    '{"wpps":"container"}',
    '{"a":{"container":"docker://ubuntu"}}',
    '{"a":"\\"container\\": nothing"}',
]

INNOCENT += ["hpcimg:works well", "see hpcimg: links=a", "xhpcimg:links=a"]

# Comment, and what would be right to follow the mark.
MISSED: list[tuple[str, str]] = [
    (U, U),
    (f"words {U} words", U),
    (f"containers:{U}", U),
    ("containers:/a.sif", "/a.sif"),
    ("Container-Image=/a.sif", "/a.sif"),
    (f"--container-image={U}", U),
    (f"contianer:{U}", U),
    ("contaner:/a.sif", "/a.sif"),
    ("Conatiner=x=/a.sif", "x=/a.sif"),
    ("containres:https://h/x.sif", "https://h/x.sif"),
    ('{"container":null,"contianer":"/a.sif"}', "/a.sif"),
    (f"image:{U}", U),
    (f"image={U}", U),
    (f'"image": "{U}"', U),
    (f"--comment=container:{U}", U),
    ("comment=container:/a.sif", "/a.sif"),
    (f"container:/a.sif tool={U}", f"tool={U}"),
    (f"container {U}", U),
    (f"container>{U}", U),
    (f"Container/{U}", U),
    (f"container-{U}", U),
    (f"container\N{FULLWIDTH COLON}{U}", U),
    (f"a,{U}", U),
    (f"('{U}')", U),
    (f'{{"containers":"{U}"}}', U),
    (f'{{"image":"{U}"}}', U),
    ("library://a/b/c", "library://a/b/c"),
]

# Comments that ask for what nobody can give.
PROBLEMS: list[tuple[str, str]] = [
    ('{"container":1}', "neither text"),
    ('{"container":["/a.sif",{}]}', "neither text"),
    ('{"container":{"a":["/a.sif"]}}', "neither text"),
    ('{"container":true}', "neither text"),
    ("hpcimg:links=galaxy", "no workflow manager galaxy is known"),
    (f"hpcimg:links=nextflow,snake container:{U}", "no workflow manager snake is known"),
    ("hpcimg:links=", "it asks for no links"),
    ("hpcimg:link=nextflow", "it asks for no links"),
    ("hpcimg:links:nextflow", "it asks for no links"),
]

# Comments, and the workflow managers that they ask links for.
LINKS: list[tuple[str, list[str]]] = [
    ("hpcimg:links=snakemake", ["snakemake"]),
    (f"container:{U} hpcimg:links=nextflow,cwltool,", ["nextflow", "cwltool"]),
    (f"hpcimg:links=miniwdl;container:{U}", ["miniwdl"]),
    ('"HPCIMG:Links=Snakemake"', ["snakemake"]),
    ("(hpcimg:links=nextflow) hpcimg:links=snakemake", ["nextflow", "snakemake"]),
    (f'{{"container":"{U}","note":"hpcimg:links=nextflow"}}', ["nextflow"]),
]
