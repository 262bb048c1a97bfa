import time
def test_first(first):
    lab, outcome = first
    print(outcome)
    import subprocess
    print(subprocess.run(["du","-ab",lab.root],capture_output=True,text=True).stdout)
def test_second(done):
    t=time.time(); print(done.run(), time.time()-t)
def test_compr(done):
    t=time.time(); print(done.run("ratios.compression=0.3"), time.time()-t)
def test_proc(done, prefect_server):
    t=time.time(); print(done.finish(PREFECT_API_URL=prefect_server), time.time()-t)
def test_proc2(done, tmp_path):
    t=time.time(); print(done.finish(PREFECT_HOME=str(tmp_path/"home")), time.time()-t)
